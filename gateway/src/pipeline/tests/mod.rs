//! What is decided about requests, without sockets and upstreams.
//!
//! `stage` is the gateway up to its upstreams, `model` says what it should do, `cases` is what both are asked. A case that
//! they have once disagreed about is a test of its own in `found`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use proptest::collection::vec;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use self::cases::{Event, World};
use self::model::Model;
use self::stage::Stage;

mod cases;
mod found;
mod model;
mod stage;

/// Requests that the model and the gateway are compared on; `DOORMAN_MODEL_REQUESTS` says otherwise.
const REQUESTS: u64 = 100_000;
/// Everything that must have happened among them, each in one of this many requests.
const RARITY: u64 = 5_000;
const MUST_HAPPEN: [&str; 41] = [
    "API010",
    "API011",
    "Bandwidth limit exceeded",
    "CRD500",
    "GTW001",
    "GTW003",
    "GTW008",
    "GTW011",
    "GTW012",
    "GTW014",
    "GTW015",
    "GTW503",
    "RATE_LIMIT_EXCEEDED",
    "REQ001",
    "Rate limit exceeded",
    "SEC010",
    "SEC011",
    "Throttle queue limit exceeded",
    "Unauthorized",
    "You are not subscribed to this resource",
    "You do not have the correct group for this",
    "a body is as it should be",
    "a credit is taken",
    "a guest with a token",
    "a local caller skips an API's list",
    "a local caller skips the filter",
    "a preflight",
    "a rule refuses",
    "a strict preflight",
    "a throttled call waits",
    "a tier's quota is used up",
    "a tier's window is used up",
    "a wait for the tier's turn",
    "an administrator needs no subscription",
    "no server",
    "sent",
    "sent by client key",
    "sent for HEAD",
    "sent to an API's servers",
    "sent to an endpoint's servers",
    "who a proxy says",
];

type Hits = BTreeMap<&'static str, u64>;

/// Lets things happen to the gateway and to the model, and tells where they disagree.
fn play(world: &World, events: &[Event]) -> Result<Hits, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (stage, tokens) = Stage::of(world).await;
        let mut model = Model::new(world, &tokens);
        for (number, event) in events.iter().enumerate() {
            match event {
                Event::Pass(millis) => {
                    tokio::time::advance(Duration::from_millis(*millis)).await;
                    model.pass(*millis);
                }
                Event::Set(seconds) => {
                    stage.set_forward(*seconds);
                    model.set_forward(*seconds);
                }
                Event::Ask(ask, answer) => {
                    let ask = ask.with(&tokens);
                    let expected = model.ask(&ask);
                    let (seen, length) = stage.answer(&ask, *answer).await;
                    if seen != expected {
                        return Err(format!("event {number}:\n{seen:#?}\ninstead of\n{expected:#?}"));
                    }
                    model.answered(length);
                }
            }
        }
        Ok(model.hits)
    })
}

fn variable(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Compares the two on so many requests, and tells what happened.
fn compare(seed: u64, requests: u64) -> Hits {
    let mut bytes = [1; 16];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::XorShift, &bytes));
    let strategy = (cases::world(), vec(cases::event(), 40..100));
    let (asked, hits) = (Cell::new(0), RefCell::new(Hits::new()));
    while asked.get() < requests {
        let tree = strategy.new_tree(&mut runner).unwrap();
        let outcome = runner.run_one(tree, |(world, events)| {
            let happened = play(&world, &events).map_err(proptest::test_runner::TestCaseError::fail)?;
            asked.set(asked.get() + events.iter().filter(|event| matches!(event, Event::Ask(..))).count() as u64);
            happened.into_iter().for_each(|(what, often)| *hits.borrow_mut().entry(what).or_default() += often);
            Ok(())
        });
        match outcome {
            Ok(_) => {}
            Err(TestError::Fail(why, (world, events))) => {
                panic!("DOORMAN_MODEL_SEED={seed}: the gateway does not what it should\n{world:#?}\n{events:#?}\n{why}")
            }
            Err(TestError::Abort(why)) => panic!("DOORMAN_MODEL_SEED={seed}: {why}"),
        }
    }
    hits.into_inner()
}

#[test]
fn the_gateway_decides_as_the_model_does() {
    let requests = variable("DOORMAN_MODEL_REQUESTS", REQUESTS);
    let seed = variable("DOORMAN_MODEL_SEED", 1);
    let threads = std::thread::available_parallelism().map_or(1, |number| number.get() as u64);
    let mut all = Hits::new();
    std::thread::scope(|scope| {
        let share = requests.div_ceil(threads);
        let start = |number| {
            // Strategies of so many parts are large.
            let thread = std::thread::Builder::new().stack_size(64 << 20);
            thread.spawn_scoped(scope, move || compare(seed + (number << 32), share)).unwrap()
        };
        let running: Vec<_> = (0..threads).map(start).collect();
        for happened in running.into_iter().map(|thread| thread.join().unwrap()) {
            happened.into_iter().for_each(|(what, often)| *all.entry(what).or_default() += often);
        }
    });
    let rare: Vec<_> =
        MUST_HAPPEN.iter().filter(|what| all.get(*what).is_none_or(|often| often * RARITY < requests)).collect();
    assert!(rare.is_empty(), "these hardly happened: {rare:?} of {all:#?}");
}
