//! The Deployment while its gateway is being reconciled: what others do to it then, and what is our own doing.

use super::*;

fn key() -> OwnedKey {
    OwnedKey { kind: Kind::Deployment, id: ObjectId { namespace: "edge".into(), name: "main".into() } }
}

fn version(uid: &str, number: u64) -> Version {
    Version { uid: uid.into(), number }
}

impl Fixture {
    /// The watch shows the Deployment in this version, or that it is gone.
    fn shows(&mut self, version: Option<Version>) {
        let owned = version.map(|version| Owned { version, owner: Some("uid-main".into()), gateway: None });
        self.event(Event::Owned(key(), owned));
    }

    /// Begins the job that is due.
    fn begin(&mut self) -> Job {
        let mut begun = None;
        for action in self.world.plan(self.now, &Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH)) {
            match action {
                Action::Reconcile(job) => begun = Some(*job),
                Action::Write(target, _, status) => {
                    self.writes.push((target.clone(), status));
                    self.event(Event::Written(target, Ok(())));
                }
                Action::Remove(key, _) => self.removed.push(key),
            }
        }
        begun.expect("no job is due")
    }

    /// Ends it with the Deployment in this version.
    fn end(&mut self, version: Version) {
        let applied = Applied { manifest: json!({}), version };
        let outcome =
            Outcome { applied: [(key(), applied)].into(), missing_keys: Some(Vec::new()), ..Outcome::default() };
        self.event(Event::Reconciled(key().id, outcome));
    }

    /// Whether no job comes, however long one waits.
    fn is_at_rest(&mut self) -> bool {
        let jobs = self.jobs.len();
        self.run_out();
        self.jobs.len() == jobs
    }
}

/// As [`running`], with the Deployment applied and seen, and a job begun for a new spec.
fn reconciling() -> Fixture {
    let mut fixture = running();
    fixture.end(version("first", 1));
    fixture.shows(Some(version("first", 1)));
    fixture.settle();
    fixture.gateway_of(2, json!({ "storage": { "mode": "Memory" }, "settings": { "HTTP_TIMEOUT": "3" } }));
    assert!(fixture.begin().applied.contains_key(&key()));
    fixture
}

#[test]
fn what_is_deleted_during_a_reconcile_is_made_again() {
    let mut fixture = reconciling();
    fixture.shows(None);
    // Its manifest is as before, so it was not touched.
    fixture.end(version("first", 1));
    assert!(!fixture.begin().applied.contains_key(&key()), "it must be applied again");
    fixture.end(version("second", 1));
    fixture.shows(Some(version("second", 1)));
    assert!(fixture.is_at_rest());
    assert_eq!(fixture.gateway_condition(READY).observed_generation, Some(2), "a status must be written again");
}

#[test]
fn what_others_change_during_a_reconcile_is_put_right() {
    // Another state of the same object, and another object in its place.
    for theirs in [version("first", 2), version("theirs", 1)] {
        let mut fixture = reconciling();
        fixture.shows(Some(theirs.clone()));
        fixture.end(version("first", 1));
        assert!(!fixture.begin().applied.contains_key(&key()), "{theirs:?} must be applied again");
        let ours = Version { number: theirs.number + 1, ..theirs };
        fixture.shows(Some(ours.clone()));
        fixture.end(ours);
        assert!(fixture.is_at_rest());
    }
}

#[test]
fn a_reconcile_that_nobody_disturbs_is_the_last() {
    // Seen before the end, and after it.
    for is_seen_first in [true, false] {
        for ours in [version("first", 1), version("first", 2)] {
            let mut fixture = reconciling();
            if is_seen_first {
                fixture.shows(Some(ours.clone()));
            }
            fixture.end(ours.clone());
            fixture.shows(Some(ours));
            assert!(fixture.is_at_rest());
        }
        // The reconcile itself makes the Deployment anew that was deleted before.
        let mut fixture = reconciling();
        fixture.shows(None);
        if is_seen_first {
            fixture.shows(Some(version("second", 1)));
        }
        fixture.end(version("second", 1));
        fixture.shows(Some(version("second", 1)));
        assert!(fixture.is_at_rest());
    }
}

#[test]
fn a_watch_that_is_behind_does_not_make_it_reconcile_all_the_time() {
    let mut fixture = reconciling();
    // The watch still shows the one that was deleted and made again.
    fixture.end(version("second", 1));
    assert!(fixture.is_at_rest());
}
