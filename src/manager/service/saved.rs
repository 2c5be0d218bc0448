//! A service as it survives the manager.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Service;
use crate::config::ServiceConfig;
use crate::manager::instance::{self, Instance};
use crate::manager::rollout::{self, InstanceId, Reconciler, Stage};
use crate::manager::{World, deployment, executable_name, status};

/// What is kept of a service for the next manager.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    spec: Arc<ServiceConfig>,
    removed: bool,
    came_up: bool,
    finished: u64,
    last_generation: u64,
    last_version: u64,
    crashes: u32,
    past_requests: u64,
    last_error: Option<status::Failure>,
    core: rollout::Saved,
    deployments: BTreeMap<u64, deployment::Saved>,
    instances: BTreeMap<InstanceId, instance::Saved>,
}

impl Service {
    /// What to keep.
    pub fn save(&self) -> Saved {
        let deployments = self.deployments.iter();
        let instances = self.instances.iter();
        Saved {
            spec: self.spec.clone(),
            removed: self.removed,
            came_up: self.came_up,
            finished: self.finished,
            last_generation: self.last_generation,
            last_version: self.last_version,
            crashes: self.crashes,
            past_requests: self.past_requests,
            last_error: self.last_error.clone(),
            core: self.core.save(),
            deployments: deployments
                .map(|(generation, deployment)| (*generation, deployment.save()))
                .collect(),
            instances: instances
                .map(|(id, instance)| (*id, instance.save()))
                .collect(),
        }
    }

    /// Goes on from what was kept, with the executables that were stored. It is to be looked at by
    /// [`Service::tick`] once all services are there.
    pub fn restore(
        mut saved: Saved,
        executables: &mut BTreeMap<String, OwnedFd>,
        world: &mut World,
    ) -> std::io::Result<Service> {
        let name = saved.spec.name.clone();
        let mut deployments = BTreeMap::new();
        for (generation, kept) in saved.deployments {
            let executable = executables.remove(&executable_name(&name, generation));
            let deployment = deployment::Deployment::restore(kept, executable)?;
            deployments.insert(generation, Rc::new(deployment));
        }
        let mut core = Reconciler::restore(saved.core.clone(), Instant::now());
        let mut instances = BTreeMap::new();
        for held in core.instances().to_vec() {
            let kept = saved.instances.remove(&held.id);
            let deployment = deployments.get(&held.target.generation).cloned();
            let (Some(kept), Some(deployment)) = (kept, deployment) else {
                core.never_was(held.id);
                continue;
            };
            let mut instance = Instance::adopt(held.id, held.slot, &name, deployment, kept, world);
            match held.state.stage() {
                // It had not been let go, or nobody has seen what became of it.
                Stage::Starting if instance.pid().is_none() => {
                    core.never_was(held.id);
                    world.ports.release(held.id);
                    instance.clean_up();
                    continue;
                }
                Stage::Stopping => instance.stop(),
                _ => {}
            }
            world.owners.insert(held.id, name.clone());
            instances.insert(held.id, instance);
        }
        world.changed.insert(name);
        Ok(Service {
            spec: saved.spec,
            core,
            deployments,
            instances,
            removed: saved.removed,
            came_up: saved.came_up,
            finished: saved.finished,
            last_generation: saved.last_generation,
            last_version: saved.last_version,
            crashes: saved.crashes,
            past_requests: saved.past_requests,
            last_error: saved.last_error,
        })
    }
}
