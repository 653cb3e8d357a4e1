//! The Dom0 tool.
