"""Entry point of `python -m tftrain`, the launcher of runs."""

from tftrain.launch import command as command_lib

if __name__ == '__main__':
  command_lib.main()
