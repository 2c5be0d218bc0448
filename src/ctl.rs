//! `smoothctl`.
