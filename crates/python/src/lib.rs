//! The policy engine as a Python module.
