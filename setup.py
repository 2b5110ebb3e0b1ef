"""Build the package from `settings.ini`, the one place where its metadata is written."""
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
classifiers = ['Development Status :: 3 - Alpha', f'Intended Audience :: {cfg["audience"]}', f'Natural Language :: {cfg["language"]}']
classifiers += [f'Programming Language :: Python :: 3.{minor}' for minor in range(int(cfg['min_python'].split('.')[1]), 14)]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'], keywords=cfg['keywords'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    license_expression='Apache-2.0', license_files=['LICENSE'], classifiers=classifiers, python_requires=f'>={cfg["min_python"]}',
    packages=find_packages(include=['manifoldgd', 'manifoldgd.*']), zip_safe=False,
    package_data={'manifoldgd': ['weights/**/*', 'tables/*', 'templates/*']},
    install_requires=shlex.split(cfg['requirements']), extras_require={'dev': shlex.split(cfg['dev_requirements'])},
    entry_points={'console_scripts': shlex.split(cfg['console_scripts']), 'nbdev': ['manifoldgd=manifoldgd._modidx:d']},
)
