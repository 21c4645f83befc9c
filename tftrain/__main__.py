"""python -m tftrain: the main job."""

from tftrain.launch import command as command_lib

if __name__ == '__main__':
  command_lib.main()
