"Packaging from settings.ini: one place for names, versions and requirements"
import shutil
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = config['DEFAULT']
readme = Path(__file__).with_name('README.md')
suffix = '_requirements'  # dev_requirements becomes the extra [dev], and so on
ships = ['seeds.txt', 'weights/*.safetensors', 'samplings/sample_*.txt', 'episodes/sample/*/*'] # below data/; in an installation below steve1/shipped/

SHIPPED = ('seeds.txt', 'episodes/sample', 'samplings/sample_train.txt', 'samplings/sample_val.txt', # below data/, as in steve1.config
    *(f'weights/{k}.safetensors' for k in ('mineclip', 'foundation', 'policy', 'prior', 'idm')))

class BuildWithData(build_py):
    "What ships goes into the package; an editable install finds it in the clone"
    def run(self):
        super().run()
        if self.editable_mode: return
        ignore = shutil.ignore_patterns('.*')
        for name in SHIPPED:
            source, target = Path(__file__).parent/'data'/name, Path(self.build_lib)/'steve1'/'shipped'/name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir(): shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)
            elif source.is_file(): shutil.copy(source, target)

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='MIT',
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '', long_description_content_type='text/markdown',
    packages=[*find_packages(include=['steve1', 'steve1.*']), 'steve1.shipped'], package_dir={'steve1.shipped':'data'},
    package_data={'steve1':['py.typed'], 'steve1.luanti':['clock.c', 'agent/*'], 'steve1.shipped':ships}, python_requires='>='+cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={k[:-len(suffix)]:v.split() for k,v in cfg.items() if k.endswith(suffix)},
    entry_points={'console_scripts': cfg.get('console_scripts', '').split()},
    cmdclass=dict(build_py=BuildWithData),
    zip_safe=False)
