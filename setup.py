"""Build the package from `settings.ini`, the one place where its metadata is written."""
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
NEWEST_PYTHON = 13  # the minor version that the workflow tests last


def read_settings():
    "Read `settings.ini` as nbdev does."
    config = ConfigParser(delimiters=["="])
    config.read(HERE / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def classifiers(settings):
    "List what a package index sorts by."
    oldest_python = int(settings["min_python"].split(".")[1])
    minors = range(oldest_python, NEWEST_PYTHON + 1)
    return [
        "Development Status :: 3 - Alpha",
        f"Intended Audience :: {settings['audience']}",
        f"Natural Language :: {settings['language']}",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in minors),
    ]


def extras(settings):
    "List what is needed for some formats, models or engines, and for development: all of it."
    names = ("hf", "sd", "ray")
    optional = {name: shlex.split(settings[f"{name}_requirements"]) for name in names}
    development = shlex.split(settings["dev_requirements"])
    return optional | {"dev": sum(optional.values(), development)}


settings = read_settings()
setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    author=settings["author"],
    keywords=settings["keywords"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=classifiers(settings),
    python_requires=f">={settings['min_python']}",
    # Named, the root makes an editable install a plain line in a .pth file. Otherwise a finder
    # stands behind the search of folders, and beside a checkout called manifoldgd Python takes that
    # folder for the package.
    package_dir={"": "."},
    packages=find_packages(include=["manifoldgd", "manifoldgd.*"]),
    package_data={"manifoldgd": ["weights/**/*", "tables/*", "templates/*"]},
    zip_safe=False,
    install_requires=shlex.split(settings["requirements"]),
    extras_require=extras(settings),
    entry_points={
        "console_scripts": shlex.split(settings["console_scripts"]),
        "nbdev": ["manifoldgd=manifoldgd._modidx:d"],
    },
)
