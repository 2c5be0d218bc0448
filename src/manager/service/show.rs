//! The views of a service: its progress for jobs, and its status for snapshots.

use std::time::SystemTime;

use super::history::{SavedFailure, SavedRefusal};
use super::service::Service;
use crate::config::Listen;
use crate::manager::jobs::Progress;
use crate::manager::rollout::{HeldInstance, LifeState, Soak};
use crate::manager::worker::listeners::Listeners;
use crate::status::{
    InstanceState, InstanceStatus, Moment, ServiceState, ServiceStatus, kept_in_words,
};

impl Service {
    /// Returns the progress of the service for its jobs.
    pub fn progress(&self) -> Progress {
        let running = self.is_wanted();
        let total = u32::from(self.spec.instance_count);
        let left = self.core.instances().len() as u32;
        Progress {
            running,
            converged: self.core.converged() && !self.leaving,
            generation: self.core.target().generation,
            done: if running {
                self.core.settled()
            } else {
                total.saturating_sub(left)
            },
            total,
            activity: self.activity(),
        }
    }

    /// Returns what the service is doing, as text for people: `shop/2 starting: connect to
    /// 127.0.0.1:9002: connection refused`.
    fn activity(&self) -> String {
        let doing = self.core.instances().iter().filter_map(|held| {
            let instance = self.instances.get(&held.id)?;
            let what = match (&held.state, &instance.last_probe) {
                (LifeState::Starting { ready: true, .. }, _) => {
                    "ready, waiting for delay_running_time".to_owned()
                }
                (LifeState::Starting { .. }, _) if instance.waits_for_executable => {
                    "starting, waits until its executable is not written any more".to_owned()
                }
                (LifeState::Starting { .. }, Some(fault)) => {
                    let hindrance = instance.hindrance();
                    let hindrance = hindrance.map_or(String::new(), |cause| format!("; {cause}"));
                    format!("starting, not ready yet: {fault}{hindrance}")
                }
                (LifeState::Starting { .. }, None) => "starting".to_owned(),
                (
                    LifeState::Ready {
                        soak: Soak::Over, ..
                    },
                    _,
                ) => return None,
                (LifeState::Ready { .. }, _) => "ready, watched before the next".to_owned(),
                (LifeState::Draining { .. }, _) => {
                    format!("draining, {} in flight", instance.counts.in_flight())
                }
                (LifeState::Closing { .. }, _) => {
                    format!("stopping, {} tunnels open", instance.counts.tunnels())
                }
                (LifeState::Stopping { .. }, _) => "stopping".to_owned(),
            };
            Some(format!("{} {what}", instance.label))
        });
        let waiting = self
            .core
            .waiting()
            .map(|(slot, _)| format!("{}/{slot} waiting to be tried again", self.spec.name));
        let keeps = (!self.keeps.is_empty()).then(|| {
            let name = &self.spec.name;
            format!("{name} {}", kept_in_words(&self.keeps))
        });
        let all = doing.chain(waiting).chain(keeps);
        all.collect::<Vec<_>>().join("; ")
    }

    /// Returns the status of the service as snapshots show it.
    pub fn status(
        &self,
        listeners: &Listeners,
        certificate_expires: Option<SystemTime>,
    ) -> ServiceStatus {
        let desired = self.core.desired();
        let is_open = |listen: &&Listen| !desired.running || listeners.get(listen).is_some();
        let (listen, not_listening): (Vec<&Listen>, Vec<&Listen>) =
            self.spec.listen.iter().partition(is_open);
        let requests: u64 = self
            .instances
            .values()
            .map(|instance| instance.counts.requests())
            .sum();
        ServiceStatus {
            state: self.state(),
            wanted: if desired.running { desired.count } else { 0 },
            generation: self.history.last_generation,
            removed: self.removed,
            keeps: self.keeps.clone(),
            refused_change: self.history.refused.as_ref().map(SavedRefusal::status),
            file: self.spec.file.display().to_string(),
            file_written: self.spec.written.0.map(Moment),
            listen: listen.iter().map(ToString::to_string).collect(),
            not_listening: not_listening.iter().map(ToString::to_string).collect(),
            sites: self.spec.sites.iter().map(ToString::to_string).collect(),
            instances: self.instance_statuses(),
            crashes: self.history.crashes,
            requests: self.history.past_requests + requests,
            last_error: self.history.last_error.as_ref().map(SavedFailure::status),
            certificate_expires: certificate_expires.map(Moment),
            remarks: self.remarks.clone(),
        }
    }

    fn instance_statuses(&self) -> Vec<InstanceStatus> {
        let mut instances: Vec<InstanceStatus> = self
            .core
            .instances()
            .iter()
            .filter_map(|held| Some(self.instances.get(&held.id)?.status(held)))
            .collect();
        instances.extend(self.core.waiting().map(|(slot, _)| {
            InstanceStatus {
                id: 0,
                slot,
                generation: self.core.target().generation,
                pid: 0,
                address: String::new(),
                state: InstanceState::Backoff,
                since: self
                    .history
                    .last_error
                    .as_ref()
                    .map_or(SystemTime::UNIX_EPOCH, |failure| failure.at.0),
                in_flight: 0,
                tunnels: 0,
                requests: 0,
                fault: None,
            }
        }));
        instances.sort_by_key(|instance| (instance.slot, instance.id));
        instances
    }

    fn state(&self) -> ServiceState {
        let desired = self.core.desired();
        let ready = self.healthy();
        let never_started = self.spec.enabled && self.history.last_generation == 0;
        if never_started && self.history.last_error.is_some() {
            return ServiceState::Failed;
        }
        if !desired.running {
            return if self.instances.is_empty() {
                ServiceState::Stopped
            } else {
                ServiceState::Stopping
            };
        }
        let failing = self.core.waiting().next().is_some();
        let short = ready < desired.count;
        let rolling = self.core.good() != Some(self.core.target());
        match ready {
            _ if self.core.converged() && !short => ServiceState::Running,
            _ if self.core.converged() => ServiceState::Degraded,
            0 if failing => ServiceState::Failed,
            0 => ServiceState::Starting,
            _ if failing => ServiceState::Degraded,
            _ if short && !self.history.came_up => ServiceState::Starting,
            _ if short && !rolling => ServiceState::Degraded,
            _ => ServiceState::Rolling,
        }
    }

    /// Returns how many instances are ready and healthy.
    fn healthy(&self) -> u32 {
        let is_healthy = |held: &&HeldInstance| {
            let instance = self.instances.get(&held.id);
            held.is_ready() && instance.is_some_and(|instance| instance.fault.is_none())
        };
        self.core.instances().iter().filter(is_healthy).count() as u32
    }

    /// Returns how many instances are ready and healthy, and how many should be.
    pub fn readiness(&self) -> (u32, u32) {
        let ready = self.healthy();
        let wanted = if self.core.desired().running {
            self.core.desired().count
        } else {
            0
        };
        (ready.min(wanted), wanted)
    }
}
