import os
def get_mine_studio_dir(): return os.environ['MINESTUDIO_DIR']
