//! The floor `shared`: what all threads of a worker share, by `Arc`.

pub(crate) mod certificates;
