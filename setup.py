"""The packages of a wheel: gkd, and configs/ beside its modules; the rest is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["gkd", "gkd.*"]), "gkd.configs"],
    package_dir={"gkd.configs": "configs"},
    package_data={
        "gkd.vocabularies": ["*.model"],
        "gkd.configs": ["**/*.gin"],
        "gkd.report": ["page.html", "page.css"],
    },
)
