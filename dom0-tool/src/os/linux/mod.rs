//! Linux guests: which kernel runs, what its structures look like, and the profile made of both.

pub mod btf;
mod btf_in_memory;
pub mod config;
mod confirm;
pub mod contents;
pub mod facts;
mod failures;
pub mod find_layout;
mod first_task;
mod free_lists;
pub mod identify;
pub mod image;
pub mod kallsyms;
mod known_symbols;
pub mod layout;
pub mod marks;
pub mod memory_model;
pub mod other_kernels;
pub mod packages;
pub mod profile;
mod sections;
mod spaces;
pub mod stub;
pub mod system_map;
mod ties;
pub mod vmcoreinfo;
pub mod zones;
