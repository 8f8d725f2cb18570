"""What a notebook imports stays what it is, whatever has been imported since."""

import pkgutil

import unlearning


def test_no_module_of_the_package_takes_the_name_of_what_it_offers() -> None:
    # Importing a submodule sets it as an attribute of the package, in the place of a function of that name.
    modules = {module.name for module in pkgutil.iter_modules(unlearning.__path__)}
    assert not modules & set(unlearning.__all__)
