//! Linux guests: which kernel runs, what its structures look like, and the profile made of both.

pub mod agreement;
pub mod contents;
pub mod identify;
pub mod kallsyms;
pub mod kernel_view;
pub mod layout;
pub mod profile;
pub mod sections;
pub mod stub;
pub mod system_map;
pub mod vmcoreinfo;
pub mod zones;
