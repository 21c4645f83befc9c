"""python -m tftrain: the main job."""

from tftrain import launch

if __name__ == '__main__':
  launch.main()
