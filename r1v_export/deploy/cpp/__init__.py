"""A bundle as a C++ project that answers with libr1v: `project` writes it."""
