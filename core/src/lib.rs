//! Free-page introspection core.
#![no_std]
#![forbid(unsafe_code)]
