//! Windows: files and memory images in the layouts of real kernels, made by `lacuna-windows-fixtures`, read
//! by `lacuna`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod carried;
mod clang;
mod command;
mod crash;
mod hole;
mod hostile_pdb;
mod layouts;
mod memory;
mod noise;
mod odd_pdb;
mod second_reader;
mod server;
mod store;
mod store_oddities;
mod store_tls;
