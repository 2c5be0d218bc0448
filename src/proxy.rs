//! The proxy worker: accepts, routes, balances and forwards.
