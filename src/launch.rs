//! The launcher: becomes the instance.
