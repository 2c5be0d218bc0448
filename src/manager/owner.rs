//! The one task that owns the desired and the actual state of all services.

mod boot;
mod changes;
mod commands;
mod disk;
mod end;
mod errands;
mod from_workers;
mod group;
mod handover;
mod manager;
mod options;
mod planning;
mod ports;
mod proceed;
mod publish;
mod published;
mod reload;
mod run;
mod services;
mod state;
mod table;
mod takeover;

pub use options::ManagerOptions;
pub use run::run;
