"Packaging from settings.ini: one place for names, versions and requirements"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = config['DEFAULT']
readme = Path(__file__).with_name('README.md')
suffix = '_requirements'  # dev_requirements becomes the extra [dev], and so on
ships = [ # below data/; in an installation below steve1/shipped/
    'seeds.txt', 'weights/*.safetensors', 'weights/luanti/*.safetensors',
    'samplings/sample_*.txt', 'episodes/sample/*/*', 'wordings/*']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='MIT',
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '', long_description_content_type='text/markdown',
    packages=[*find_packages(include=['steve1', 'steve1.*']), 'steve1.shipped'], package_dir={'steve1.shipped':'data'},
    package_data={'steve1':['py.typed'], 'steve1.luanti':['clock.c', 'agent/*'], 'steve1.world':['walk.c'], 'steve1.shipped':ships}, python_requires='>='+cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={k[:-len(suffix)]:v.split() for k,v in cfg.items() if k.endswith(suffix)},
    entry_points={'console_scripts': cfg.get('console_scripts', '').split(),
        'papermill.engine': ['steve1 = steve1.base.parameters']}, # papermill imports it: see there
    zip_safe=False)
