//! A DoormanGateway that does not have the shape of its kind: it is told, and nothing is touched.

use doorman_crds::conditions::AVAILABLE;

use super::*;

const ERROR: &str = "unknown variant `Disk`";

fn main_gateway() -> ObjectId {
    ObjectId { namespace: "edge".into(), name: "main".into() }
}

impl Fixture {
    fn unreadable(&mut self, generation: i64) {
        let meta = serde_json::from_value(meta("main", generation)).unwrap();
        self.event(Event::Gateway(Change::Unreadable(Box::new(meta), ERROR.into())));
    }

    fn gateway_status(&self) -> &DoormanGatewayStatus {
        let written = self.writes.iter().rev().find_map(|(_, status)| match status {
            StatusOf::Gateway(status) => Some(status),
            _ => None,
        });
        written.expect("the gateway has no status")
    }
}

#[test]
fn a_gateway_that_can_not_be_read_says_so_and_what_runs_is_left_alone() {
    let mut fixture = running();
    let jobs = fixture.jobs.len();
    fixture.unreadable(2);
    fixture.run_out();
    let accepted = fixture.gateway_condition(ACCEPTED);
    assert_eq!((accepted.status.as_str(), accepted.reason.as_str()), ("False", "Invalid"));
    assert_eq!((accepted.message, accepted.observed_generation), (format!("spec: {ERROR}"), Some(2)));
    assert_eq!(fixture.gateway_says(READY), pair("False", "Invalid"));
    assert_eq!(fixture.says("a", READY), pair("True", "Ready"), "its pods go on serving");
    fixture.unreadable(2);
    assert_eq!((fixture.settle(), fixture.jobs.len()), (0, jobs));

    fixture.gateway_of(2, json!({ "storage": { "mode": "Memory" } }));
    fixture.run_out();
    assert_eq!(fixture.jobs.len(), jobs + 1, "the new spec was never written");
    assert_eq!(fixture.gateway_says(READY), pair("True", "Ready"));
    assert_eq!(fixture.gateway_status().observed_generation, Some(2));
}

#[test]
fn of_a_gateway_that_was_never_read_only_what_is_known_is_told() {
    let mut fixture = Fixture::new();
    // As for an operator that starts beside a running fleet.
    fixture.event(Event::Gateway(Change::Gone(main_gateway())));
    fixture.unreadable(2);
    let binding =
        OwnedKey { kind: Kind::ClusterRoleBinding, id: ObjectId { namespace: String::new(), name: "main".into() } };
    let version = Version { uid: "u".into(), number: 1 };
    fixture.event(Event::Owned(binding, Some(Owned { version, owner: None, gateway: Some(main_gateway()) })));
    fixture.api("a", 1, json!({}));
    fixture.pod("pod-1", true);
    fixture.reports("pod-1", fixture.current());
    fixture.event(Event::Complete);
    fixture.run_out();
    fixture.after(SILENCE * 2);
    assert_eq!(fixture.gateway_says(ACCEPTED), pair("False", "Invalid"));
    assert_eq!(fixture.gateway_says(READY), pair("False", "Invalid"));
    assert_eq!(fixture.gateway_says(AVAILABLE), pair("True", "Available"));
    for condition in [PROGRAMMED, STORAGE_REACHABLE] {
        assert_eq!(fixture.gateway_says(condition), pair("Unknown", "Pending"));
    }
    let status = fixture.gateway_status();
    assert_eq!((status.observed_generation, status.apis, &status.lagging_pods), (Some(2), Some(0), &None));
    assert_eq!(fixture.says("a", PROGRAMMED), pair("False", "NoGateway"));
    assert!(fixture.jobs.is_empty() && fixture.removed.is_empty(), "{:?} {:?}", fixture.jobs, fixture.removed);

    fixture.gateway_of(2, json!({ "storage": { "mode": "Memory" } }));
    fixture.run_out();
    assert_eq!(fixture.jobs.len(), 1);
    assert_eq!(fixture.gateway_says(READY), pair("True", "Ready"));
    assert_eq!(fixture.says("a", READY), pair("True", "Ready"));
}
