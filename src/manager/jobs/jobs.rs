//! All jobs, by number.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::job::{Job, SavedJob};
use super::part::{Goal, NewPart, Outcome, Part, Progress};
use crate::status::{FailureReport, JobKind, JobState, JobStatus};

/// How long a job stays visible after its end.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The jobs as they are saved for the next manager. Only the manager's own user can read the file,
/// which has what failed instances have written.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedJobs(BTreeMap<u32, SavedJob>);

/// All jobs that run, and the jobs that have ended within the last minute.
#[derive(Debug, Default)]
pub struct Jobs {
    last: u32,
    jobs: BTreeMap<u32, Job>,
    changed: bool,
}

impl Jobs {
    /// Returns the number of the newest job; 0 before the first.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// Makes the numbers of new jobs begin above `last`. A client may still wait for a job of the
    /// previous manager, and must not take the end of a new job for it.
    pub fn number_on_from(&mut self, last: u32) {
        self.last = self.last.max(last);
    }

    /// Returns the state that the next manager needs to go on with the jobs.
    pub fn save(&self) -> SavedJobs {
        let jobs = self.jobs.iter().map(|(id, job)| (*id, job.save()));
        SavedJobs(jobs.collect())
    }

    /// Goes on with the jobs of the last manager. Those that had ended stay visible for as long as
    /// new ones.
    pub fn restore(&mut self, saved: SavedJobs, now: Instant) {
        for (id, saved) in saved.0 {
            self.last = self.last.max(id);
            self.jobs.insert(id, Job::restore(saved, now));
        }
    }

    /// Returns true if a job has begun or ended since the last call.
    pub fn have_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Begins a job and returns its number. `service` is empty for a reload. `unchanged` is what
    /// the job says if nothing has to be done.
    pub fn begin(
        &mut self,
        kind: JobKind,
        service: &str,
        parts: Vec<NewPart>,
        unchanged: String,
        now: Instant,
    ) -> u32 {
        self.last += 1;
        self.changed = true;
        let parts = parts.into_iter().map(Part::from);
        let mut job = Job::new(kind, service, parts.collect(), unchanged);
        job.conclude(self.last, now);
        self.jobs.insert(self.last, job);
        self.last
    }

    /// Updates the jobs with the progress of a service.
    pub fn progress(&mut self, service: &str, progress: &Progress, now: Instant) {
        self.each_part(service, now, |part| part.look(progress));
        for job in self.jobs.values_mut() {
            let concerned = job.runs() && job.parts.iter().any(|part| part.service == service);
            if concerned && !progress.activity.is_empty() {
                job.step.clone_from(&progress.activity);
            }
        }
    }

    /// Fails the parts that wait for `generation` of a service, or for an older one, because an
    /// instance of that generation has failed.
    pub fn failed(
        &mut self,
        service: &str,
        generation: u64,
        error: &str,
        report: &FailureReport,
        now: Instant,
    ) {
        self.each_part(service, now, |part| match part.goal {
            Goal::Running { generation: wanted } if wanted <= generation => Some(Outcome::Failed {
                error: error.to_owned(),
                report: report.text().to_owned(),
            }),
            _ => None,
        });
    }

    /// Notes that something went wrong on the way to the goals of a service. The service goes on to
    /// its goals, and its parts fail when it has reached them.
    pub fn went_wrong(&mut self, service: &str, error: &str) {
        for job in self.jobs.values_mut().filter(|job| job.runs()) {
            let is_open = |part: &&mut Part| part.service == service && part.outcome.is_none();
            for part in job.parts.iter_mut().filter(is_open) {
                part.note_fault(error);
            }
        }
        self.changed = true;
    }

    /// Ends the parts of a service that has to stop, and keeps sites for `awaited`, in the jobs
    /// that do not make those ready any more. `words` say what the service keeps.
    pub fn kept(
        &mut self,
        service: &str,
        awaited: &BTreeSet<&str>,
        words: impl Fn() -> String,
        now: Instant,
    ) {
        let is_open = |part: &Part| {
            part.service == service && part.outcome.is_none() && part.goal == Goal::Stopped
        };
        let has_open = |job: &Job| job.runs() && job.parts.iter().any(is_open);
        // A newer configuration wants another new owner than the jobs before do.
        let newest = self.jobs.iter().rev().find(|(_, job)| has_open(job));
        let newest = newest.map(|(id, _)| *id);
        for (id, job) in self.jobs.iter_mut().filter(|(_, job)| has_open(job)) {
            let is_awaited = |part: &&Part| awaited.contains(part.service.as_str());
            let mut parts = job.parts.iter().filter(is_awaited);
            if parts.any(|part| matches!(part.outcome, None | Some(Outcome::Done))) {
                continue;
            }
            let mut parts = job.parts.iter().filter(is_awaited).peekable();
            let is_superseded = match parts.peek() {
                Some(_) => parts.all(|part| part.outcome == Some(Outcome::Superseded)),
                None => Some(*id) != newest,
            };
            let outcome = match is_superseded {
                true => Outcome::Superseded,
                false => Outcome::failed(format!("{service} {}", words())),
            };
            for part in job.parts.iter_mut().filter(|part| is_open(part)) {
                part.end(outcome.clone());
            }
            self.changed |= job.conclude(*id, now);
        }
    }

    /// Fails the parts that wait for a generation that `has_given_up` recognizes. Nobody else tells
    /// these jobs: the rollout was canceled by way of another job, or the last manager has seen the
    /// failure and could not say so any more. `error` is what has failed.
    pub fn give_up(
        &mut self,
        service: &str,
        has_given_up: impl Fn(u64) -> bool,
        error: &str,
        now: Instant,
    ) {
        self.each_part(service, now, |part| match part.goal {
            Goal::Running { generation } if has_given_up(generation) => {
                Some(Outcome::failed(error.to_owned()))
            }
            _ => None,
        });
    }

    /// Ends the parts for a service that is no longer configured and whose last instance is gone.
    pub fn removed(&mut self, service: &str, now: Instant) {
        self.each_part(service, now, |part| match part.goal {
            Goal::Stopped => Some(Outcome::Done),
            Goal::Running { .. } => Some(Outcome::Superseded),
        });
    }

    /// Cancels a running job. Returns the services and goals that the job has not reached yet.
    pub fn cancel(&mut self, id: u32, now: Instant) -> Option<Vec<(String, Goal)>> {
        let job = self.jobs.get_mut(&id).filter(|job| job.runs())?;
        job.end(JobState::Canceled, now);
        self.changed = true;
        let open = job.parts.iter().filter(|part| part.outcome.is_none());
        Some(open.map(|part| (part.service.clone(), part.goal)).collect())
    }

    /// Forgets jobs that ended more than a minute ago.
    pub fn forget(&mut self, now: Instant) {
        let is_recent = |at: Instant| now < at + REMEMBERED;
        self.jobs
            .retain(|_, job| job.ended_at().is_none_or(is_recent));
    }

    /// Returns the status of all jobs, by number.
    pub fn status(&self) -> BTreeMap<u32, Arc<JobStatus>> {
        let jobs = self.jobs.iter();
        jobs.map(|(id, job)| (*id, job.status())).collect()
    }

    /// Returns true if a reload is still running.
    pub fn are_reloading(&self) -> bool {
        let mut jobs = self.jobs.values();
        jobs.any(|job| job.kind == JobKind::Reload && job.runs())
    }

    fn each_part(
        &mut self,
        service: &str,
        now: Instant,
        judge: impl Fn(&mut Part) -> Option<Outcome>,
    ) {
        for (id, job) in self.jobs.iter_mut().filter(|(_, job)| job.runs()) {
            for part in job.parts.iter_mut().filter(|part| part.service == service) {
                if part.outcome.is_none()
                    && let Some(outcome) = judge(part)
                {
                    part.end(outcome);
                }
            }
            self.changed |= job.conclude(*id, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(running: bool, converged: bool, generation: u64) -> Progress {
        Progress {
            running,
            converged,
            generation,
            done: 1,
            total: 3,
            activity: "shop/1: starting".into(),
        }
    }

    fn begin(jobs: &mut Jobs, kind: JobKind, parts: &[(&str, Goal)], now: Instant) -> u32 {
        let service = match parts {
            [(service, _)] => service,
            _ => "",
        };
        let parts = parts.iter();
        let parts = parts.map(|(service, goal)| NewPart::wait(service, *goal, None));
        jobs.begin(kind, service, parts.collect(), String::new(), now)
    }

    fn restart(jobs: &mut Jobs, generation: u64, now: Instant) -> u32 {
        begin(
            jobs,
            JobKind::Restart,
            &[("shop", Goal::Running { generation })],
            now,
        )
    }

    fn state(jobs: &Jobs, id: u32) -> JobState {
        jobs.status()[&id].state
    }

    #[test]
    fn a_newer_generation_fulfils_older_jobs_and_fails_them() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let first = restart(&mut jobs, 2, now);
        let second = restart(&mut jobs, 3, now);
        jobs.progress("shop", &progress(true, false, 3), now);
        assert_eq!(
            (state(&jobs, first), jobs.status()[&first].step.as_str()),
            (JobState::Running, "shop/1: starting")
        );
        jobs.progress("shop", &progress(true, true, 3), now);
        assert_eq!(
            (state(&jobs, first), state(&jobs, second)),
            (JobState::Done, JobState::Done)
        );
        let third = restart(&mut jobs, 4, now);
        let report = FailureReport::new("shop/1 exited", &["stderr: secret".to_owned()]);
        jobs.failed("shop", 4, "shop/1 exited", &report, now);
        jobs.progress("shop", &progress(true, true, 3), now);
        assert_eq!(
            (state(&jobs, third), jobs.status()[&third].error.as_deref()),
            (JobState::Failed, Some("shop/1 exited"))
        );
        let status = &jobs.status()[&third];
        assert_eq!(status.report.text(), "shop/1 exited\n  stderr: secret");
        for shown in [
            serde_json::to_string(status).unwrap(),
            format!("{status:?}"),
        ] {
            assert!(!shown.contains("secret"), "{shown}");
        }
    }

    #[test]
    fn a_failure_of_an_older_generation_fails_no_newer_job() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let job = restart(&mut jobs, 3, now);
        jobs.failed(
            "shop",
            2,
            "the old one crashed",
            &FailureReport::default(),
            now,
        );
        assert_eq!(state(&jobs, job), JobState::Running);
    }

    #[test]
    fn the_opposite_wish_supersedes() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let job = restart(&mut jobs, 2, now);
        let stop = begin(&mut jobs, JobKind::Stop, &[("shop", Goal::Stopped)], now);
        jobs.progress("shop", &progress(false, true, 2), now);
        assert_eq!(
            (state(&jobs, job), state(&jobs, stop)),
            (JobState::Superseded, JobState::Done)
        );
    }

    #[test]
    fn a_reload_ends_with_the_last_of_its_parts_and_at_once_without_any() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let empty = begin(&mut jobs, JobKind::Reload, &[], now);
        assert_eq!(state(&jobs, empty), JobState::Done);
        let parts = [("a", Goal::Running { generation: 2 }), ("b", Goal::Stopped)];
        let job = begin(&mut jobs, JobKind::Reload, &parts, now);
        jobs.progress("a", &progress(true, true, 2), now);
        assert_eq!(state(&jobs, job), JobState::Running);
        jobs.removed("b", now);
        assert_eq!(state(&jobs, job), JobState::Done);
        jobs.forget(now + REMEMBERED);
        assert!(jobs.status().is_empty());
    }

    #[test]
    fn a_job_that_makes_no_new_owner_ready_fails_unless_a_newer_one_is_to_do_so() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let ready = Goal::Running { generation: 2 };
        let mut reload = |parts: &[(&str, Goal)]| begin(&mut jobs, JobKind::Reload, parts, now);
        let earlier = reload(&[("shop", Goal::Stopped), ("store", ready)]);
        let first = reload(&[("shop", Goal::Stopped), ("web", ready)]);
        let words = || "keeps shop.example until web is ready".to_owned();
        let kept = |jobs: &mut Jobs| jobs.kept("shop", &BTreeSet::from(["web"]), words, now);
        jobs.removed("store", now);
        kept(&mut jobs);
        assert_eq!(
            (state(&jobs, earlier), state(&jobs, first)),
            (JobState::Superseded, JobState::Running)
        );
        // A command has stopped the new owner, and a reload leaves it so.
        jobs.progress("web", &progress(false, true, 2), now);
        let second = begin(&mut jobs, JobKind::Reload, &[("shop", Goal::Stopped)], now);
        kept(&mut jobs);
        assert_eq!(
            (state(&jobs, first), state(&jobs, second)),
            (JobState::Superseded, JobState::Failed)
        );
        let error = jobs.status()[&second].error.clone();
        let expected = "shop keeps shop.example until web is ready";
        assert_eq!(error.as_deref(), Some(expected));
    }

    #[test]
    fn what_went_wrong_on_the_way_fails_a_job_at_its_end_and_no_later_one() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let job = restart(&mut jobs, 2, now);
        jobs.went_wrong("shop", "shop/1: process 7 is left behind");
        jobs.went_wrong("web", "web/1: process 8 is left behind");
        jobs.progress("shop", &progress(true, false, 2), now);
        assert_eq!(state(&jobs, job), JobState::Running);
        let mut next = Jobs::default();
        next.restore(jobs.save(), now);
        next.progress("shop", &progress(true, true, 2), now);
        assert_eq!(
            (state(&next, job), next.status()[&job].error.as_deref()),
            (JobState::Failed, Some("shop/1: process 7 is left behind"))
        );
        let later = restart(&mut next, 2, now);
        next.progress("shop", &progress(true, true, 2), now);
        assert_eq!(state(&next, later), JobState::Done);
    }

    #[test]
    fn a_canceled_job_names_what_it_was_working_on() {
        let (mut jobs, now) = (Jobs::default(), Instant::now());
        let job = restart(&mut jobs, 2, now);
        assert_eq!(
            jobs.cancel(job, now),
            Some(vec![("shop".to_owned(), Goal::Running { generation: 2 })])
        );
        assert_eq!(
            (state(&jobs, job), jobs.cancel(job, now)),
            (JobState::Canceled, None)
        );
    }
}
