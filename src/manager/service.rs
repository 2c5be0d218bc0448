//! One service: the shell around its rollout core. The shell performs the core's actions on real
//! processes and reports back what happens to them.

mod diagnosis;
mod history;
mod leaving;
mod news;
mod plan;
mod saved;
#[allow(clippy::module_inception)]
mod service;
mod show;

pub use history::ChangeSubject;
pub use plan::{Plan, PlanReason};
pub use saved::{FrozenService, SavedService};
pub use service::Service;
