//! What the manager does when it is asked for something, by D-Bus, by a signal or by changed files.
//!
//! A change is planned for all services that it touches before any of them is touched: a fault anywhere changes
//! nothing.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::certificates::Certificates;
use super::jobs::Goal;
use super::listeners::{BindError, Bound, Keeper};
use super::service::{Plan, Reason, Service};
use super::status::{Command, CommandError, JobKind};
use super::{Manager, Phase};
use crate::config::{self, Config, Listen, ServiceConfig};
use crate::events;

impl Manager {
    /// Performs a command, as far as it can be performed at once: the rest is the jobs'.
    pub(super) fn command(&mut self, command: Command) -> Result<Vec<u32>, CommandError> {
        if self.phase != Phase::Serving {
            return Err(CommandError::ShuttingDown);
        }
        match command {
            Command::Reload => self
                .reload()
                .inspect_err(|error| {
                    tracing::error!(
                        message_id = events::CONFIGURATION_REFUSED,
                        error = %error,
                        "configuration refused"
                    );
                })
                .map(|job| vec![job]),
            Command::Start(name) => self.start(name),
            Command::Restart(name) => self.renew(JobKind::Restart, vec![name]),
            Command::Stop(name) => self.stop(&name).map(|job| vec![job]),
            Command::RestartAll => self.restart_all(),
            Command::Cancel(job) => self.cancel(job),
        }
    }

    /// Applies all that changed on disk, or nothing.
    fn reload(&mut self) -> Result<u32, CommandError> {
        let config =
            config::load(&self.options.config_dir).map_err(|faults| refused(faults.to_string()))?;
        let wanted = self.ports_of(&config, None);
        let (bound, errors) = self.listeners.bind(&wanted);
        let mut faults: Vec<String> = errors
            .iter()
            .map(|error| self.locate(&config, error))
            .collect();
        for conflict in self.conflicts(config.services.values(), None) {
            let file = &config.services[&conflict.second].file;
            faults.push(format!("{}: {}", file.display(), conflict.message));
        }
        let mut plans = Vec::new();
        for spec in config.services.values() {
            match self.plan(spec, Reason::Reload) {
                Ok(plan) => plans.push(plan),
                Err(error) => faults.push(format!("{}: {error}", spec.file.display())),
            }
        }
        let specs = config.services.values().map(|spec| &**spec);
        let (certificates, unread) = Certificates::read(specs);
        for (spec, fault) in unread.iter().filter(|(spec, _)| spec.enabled) {
            faults.push(format!("{}: {fault}", spec.file.display()));
        }
        if !faults.is_empty() {
            return Err(refused(faults.join("\n")));
        }
        self.certificates = certificates.into();
        self.adopt_listeners(bound, &wanted);
        let parts = self.adopt(config, plans);
        tracing::info!(
            message_id = events::CONFIGURATION_APPLIED,
            changed = parts.len(),
            "configuration applied"
        );
        Ok(self
            .world
            .jobs
            .begin(JobKind::Reload, "", parts, Instant::now()))
    }

    /// Reads what there is where nothing can be refused any more.
    pub(super) fn read_certificates(&mut self, config: &Config) {
        let specs = config.services.values().map(|spec| &**spec);
        let (certificates, unread) = Certificates::read(specs.filter(|spec| spec.enabled));
        for (spec, fault) in unread {
            tracing::error!(
                service = spec.name,
                error = %fault,
                "certificate not read, its ports with TLS are of no use"
            );
        }
        self.certificates = certificates.into();
    }

    /// Makes a configuration and the plans for its services the current ones. Returns what there is to wait for.
    pub(super) fn adopt(&mut self, config: Config, plans: Vec<Plan>) -> Vec<(String, Goal)> {
        for note in config
            .notes
            .iter()
            .filter(|note| !self.config.notes.contains(note))
        {
            tracing::warn!(note, "configuration note");
        }
        self.world.default_user.clone_from(&config.default_user);
        self.config = config.into();
        self.world.ports.claim(&self.config);
        let mut parts = Vec::new();
        let gone = self.services.iter().filter(|(name, service)| {
            !self.config.services.contains_key(*name) && !service.is_removed()
        });
        let gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
        for name in gone {
            if let Some(service) = self.services.get_mut(&name) {
                tracing::info!(service = name, "removing service");
                service.stop(true, &mut self.world);
                parts.push((name, Goal::Stopped));
            }
        }
        for (name, spec) in &self.config.services {
            if !self.services.contains_key(name) {
                self.services
                    .insert(name.clone(), Service::new(spec.clone()));
            }
        }
        for plan in plans {
            let name = plan.spec().name.clone();
            let service = self
                .services
                .get_mut(&name)
                .expect("all configured services are there");
            if let Some(goal) = service.apply(plan, &mut self.world) {
                parts.push((name, goal));
            }
        }
        self.watch_files();
        parts
    }

    fn plan(&self, spec: &Arc<ServiceConfig>, reason: Reason) -> std::io::Result<Plan> {
        match self.services.get(&spec.name) {
            Some(service) => service.plan(spec, reason),
            None => Service::new(spec.clone()).plan(spec, reason),
        }
    }

    /// A service that is to run already is only waited for.
    fn start(&mut self, name: String) -> Result<Vec<u32>, CommandError> {
        let service = self.configured(&name)?;
        if !service.is_wanted() {
            return self.renew(JobKind::Start, vec![name]);
        }
        let parts = vec![(name.clone(), service.goal())];
        self.world.changed.insert(name.clone());
        let job = self
            .world
            .jobs
            .begin(JobKind::Start, &name, parts, Instant::now());
        Ok(vec![job])
    }

    /// Gives services new instances of what is on disk now, each by a job of its own.
    fn renew(&mut self, kind: JobKind, names: Vec<String>) -> Result<Vec<u32>, CommandError> {
        let mut plans = Vec::new();
        for name in names {
            let service = self.configured(&name)?;
            let spec = service.spec().clone();
            let plan = service
                .plan(&spec, Reason::Command)
                .map_err(|error| refused(format!("{}: {error}", spec.file.display())))?;
            if !spec.enabled {
                self.open_ports(&spec)?;
            }
            plans.push((name, plan));
        }
        let mut jobs = Vec::new();
        for (name, plan) in plans {
            let service = self.services.get_mut(&name).expect("looked up above");
            let goal = service.apply(plan, &mut self.world);
            let parts = goal.map(|goal| (name.clone(), goal)).into_iter().collect();
            jobs.push(self.world.jobs.begin(kind, &name, parts, Instant::now()));
        }
        Ok(jobs)
    }

    /// Makes place for a service that takes no ports and hosts by its file, but is to be started all the same.
    fn open_ports(&mut self, spec: &Arc<ServiceConfig>) -> Result<(), CommandError> {
        let others = self.services.values().filter(|other| !other.is_removed());
        let others = others
            .map(Service::spec)
            .filter(|other| other.name != spec.name);
        if let Some(conflict) = self
            .conflicts(others.chain([spec]), Some(&spec.name))
            .first()
        {
            return Err(refused(conflict.message.clone()));
        }
        let wanted = self.ports_of(&self.config, Some(&spec.name));
        let (bound, errors) = self.listeners.bind(&wanted);
        if let Some(error) = errors.first() {
            return Err(refused(self.locate(&self.config, error)));
        }
        self.adopt_listeners(bound, &wanted);
        Ok(())
    }

    pub(super) fn adopt_listeners(&mut self, bound: Bound, wanted: &BTreeSet<Listen>) {
        let last = self.listeners.last_id();
        let closed = self.listeners.adopt(bound, wanted);
        for (_, listener) in self.listeners.iter() {
            if listener.id > last {
                self.workers.send_listener(listener);
                if let Keeper::Store(name) = &listener.keeper {
                    self.world.supervision.store(name, listener.descriptor());
                }
            }
        }
        self.let_go(closed);
    }

    /// Has sockets closed by those who hold them, too.
    pub(super) fn let_go(&self, keepers: Vec<Keeper>) {
        for keeper in keepers {
            match (keeper, self.world.units) {
                (Keeper::Store(name), _) => self.world.supervision.forget(&name),
                (Keeper::Unit(unit), Some(units)) => {
                    tokio::task::spawn_local(async move {
                        if let Err(error) = units.stop(&unit).await {
                            tracing::error!(unit, error = %error, "socket unit not stopped");
                        }
                    });
                }
                (Keeper::Unit(_), None) => {}
            }
        }
    }

    /// What stands between services, those that were started by hand, or are about to be, counted as enabled.
    fn conflicts<'a>(
        &self,
        specs: impl Iterator<Item = &'a Arc<ServiceConfig>>,
        starting: Option<&str>,
    ) -> Vec<config::Conflict> {
        let as_it_runs = |spec: &Arc<ServiceConfig>| ServiceConfig {
            enabled: self.is_to_run(spec, starting),
            ..(**spec).clone()
        };
        let specs: Vec<ServiceConfig> = specs.map(as_it_runs).collect();
        config::conflicts(&specs)
    }

    fn is_to_run(&self, spec: &ServiceConfig, starting: Option<&str>) -> bool {
        let started = self
            .services
            .get(&spec.name)
            .is_some_and(Service::is_wanted);
        spec.enabled || started || starting == Some(&spec.name)
    }

    /// The addresses that are to be open: those of enabled services, even if they were stopped, since requests are to be
    /// told so, and those of services that were started by hand.
    pub(super) fn ports_of(&self, config: &Config, starting: Option<&str>) -> BTreeSet<Listen> {
        let specs = config.services.values();
        let wanted = specs.filter(|spec| self.is_to_run(spec, starting));
        wanted
            .flat_map(|spec| spec.listen.iter().copied())
            .collect()
    }

    fn stop(&mut self, name: &str) -> Result<u32, CommandError> {
        self.configured(name)?;
        let service = self.services.get_mut(name).expect("looked up above");
        service.stop(false, &mut self.world);
        let parts = vec![(name.to_owned(), Goal::Stopped)];
        Ok(self
            .world
            .jobs
            .begin(JobKind::Stop, name, parts, Instant::now()))
    }

    fn restart_all(&mut self) -> Result<Vec<u32>, CommandError> {
        let running: Vec<String> = self
            .services
            .iter()
            .filter(|(_, service)| service.is_wanted())
            .map(|(name, _)| name.clone())
            .collect();
        self.renew(JobKind::Restart, running)
    }

    fn cancel(&mut self, id: u32) -> Result<Vec<u32>, CommandError> {
        let parts = self
            .world
            .jobs
            .cancel(id, Instant::now())
            .ok_or(CommandError::NoSuchJob(id))?;
        for (name, goal) in parts {
            if let (Some(service), Goal::Running { generation }) =
                (self.services.get_mut(&name), goal)
            {
                service.cancel(generation, &mut self.world);
            }
        }
        Ok(Vec::new())
    }

    /// Takes in that files of a service with `auto_restart` have changed: its own file, its executable, what it watches.
    pub(super) fn files_changed(&mut self, name: &str) {
        if self.phase != Phase::Serving {
            return;
        }
        let Some(service) = self
            .services
            .get(name)
            .filter(|service| !service.is_removed())
        else {
            return;
        };
        let spec = self.changed_spec(service);
        let plan = match service.plan(&spec, Reason::FilesChanged) {
            Ok(plan) => plan,
            Err(error) => {
                tracing::error!(service = name, error = %error, "changed files not applied");
                return;
            }
        };
        let (certificates, unread) = Certificates::read([&*spec]);
        if let Some((_, fault)) = unread.first() {
            tracing::error!(service = name, error = %fault, "changed files not applied");
            return;
        }
        Rc::make_mut(&mut self.certificates).extend(certificates);
        let service = self.services.get_mut(name).expect("looked up above");
        let goal = service.apply(plan, &mut self.world);
        if let Some(goal) = goal {
            tracing::info!(service = name, "files changed");
            self.world.jobs.begin(
                JobKind::Restart,
                name,
                vec![(name.to_owned(), goal)],
                Instant::now(),
            );
        }
        self.watch_files();
    }

    /// Takes in that the certificate of a service has changed, and nothing else.
    pub(super) fn certificate_changed(&mut self, name: &str) {
        let known = self
            .services
            .get(name)
            .filter(|service| !service.is_removed());
        let Some(spec) = known.map(|service| service.spec().clone()) else {
            return;
        };
        let refuse = |error: &str| {
            tracing::error!(
                message_id = events::CERTIFICATE_REFUSED,
                service = name,
                error,
                "changed certificate not taken"
            );
        };
        let (read, unread) = Certificates::read([&*spec]);
        if let Some((_, fault)) = unread.first() {
            return refuse(&fault.to_string());
        }
        let Some(certificate) = read.get(&spec) else {
            return;
        };
        let before = self.certificates.get(&spec);
        if before.is_some_and(|before| before.digest == certificate.digest) {
            return;
        }
        if let Some(invalid) = certificate.invalidity(SystemTime::now()) {
            return refuse(&format!("it {invalid}"));
        }
        tracing::info!(
            message_id = events::CERTIFICATE_RENEWED,
            service = name,
            "certificate renewed"
        );
        Rc::make_mut(&mut self.certificates).extend(read);
        self.world.changed.insert(name.to_owned());
    }

    /// Says which certificates should have been renewed by now.
    pub(super) fn remind_of_certificates(&self) {
        let now = SystemTime::now();
        for (name, service) in self.services.iter() {
            let certificate = self.certificates.get(service.spec());
            if let Some(note) = certificate.and_then(|certificate| certificate.end_is_near(now)) {
                tracing::warn!(
                    message_id = events::CERTIFICATE_EXPIRES,
                    service = name,
                    note,
                    "certificate expires soon"
                );
            }
        }
    }

    /// The service's file as it is now, if that can be applied to this service alone; otherwise as it was.
    fn changed_spec(&self, service: &Service) -> Arc<ServiceConfig> {
        let name = &service.spec().name;
        let refuse = |error: &str| {
            tracing::error!(
                message_id = events::CONFIGURATION_REFUSED,
                service = name,
                error,
                "changed file not applied"
            );
            service.spec().clone()
        };
        let config = match config::load(&self.options.config_dir) {
            Ok(config) => config,
            Err(faults) => return refuse(&faults.to_string()),
        };
        let Some(spec) = config.services.get(name) else {
            return service.spec().clone();
        };
        if spec
            .listen
            .iter()
            .any(|listen| self.listeners.get(listen).is_none())
        {
            return refuse("it names a port that is not open yet; reload smoothserve to open it");
        }
        let others = self.services.values().filter(|other| !other.is_removed());
        let others = others
            .map(Service::spec)
            .filter(|other| other.name != *name);
        match self.conflicts(others.chain([spec]), None).first() {
            Some(conflict) => refuse(&conflict.message),
            None => spec.clone(),
        }
    }

    /// Tells the watcher what to look at.
    fn watch_files(&mut self) {
        let watched = self
            .services
            .values()
            .filter(|service| !service.is_removed());
        self.watcher.set(watched.map(|service| &**service.spec()));
    }

    fn configured(&self, name: &str) -> Result<&Service, CommandError> {
        let service = self
            .services
            .get(name)
            .filter(|service| !service.is_removed());
        service.ok_or_else(|| CommandError::NoSuchService(name.to_owned()))
    }

    /// A port that cannot be opened, with the files that ask for it.
    fn locate(&self, config: &Config, error: &BindError) -> String {
        let users: BTreeSet<String> = config
            .services
            .values()
            .filter(|service| service.listen.contains(&error.listen))
            .map(|service| service.file.display().to_string())
            .collect();
        format!(
            "{}: {error}",
            users.into_iter().collect::<Vec<_>>().join(", ")
        )
    }
}

fn refused(report: String) -> CommandError {
    CommandError::InvalidConfig(report)
}
