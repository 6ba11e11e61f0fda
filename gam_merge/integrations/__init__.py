"""Called from other training stacks. Each module needs the library that it is named after."""
