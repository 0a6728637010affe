//! What is decided about requests, without sockets and upstreams.
//!
//! `stage` is the gateway up to its upstreams, `model` says what it should do, `cases` is what both are asked. A case that
//! they have once disagreed about is a test of its own in `found`.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use self::cases::{Event, World};
use self::model::{Hits, Model};
use self::stage::Stage;

mod cases;
mod found;
mod model;
mod stage;

/// Requests that the model and the gateway are compared on with the same seed each time, and with one that is new each
/// time; `DOORMAN_MODEL_REQUESTS` and `DOORMAN_MODEL_SEED` say otherwise.
const REQUESTS: u64 = 100_000;
const OTHER_REQUESTS: u64 = 10_000;
const SEED: u64 = 1;
/// The most that happens under one configuration.
const EVENTS: usize = 120;
/// Everything that must have happened among them, each in one of this many requests.
const RARITY: u64 = 10_000;

/// Lets things happen to the gateway and to the model, and tells where they disagree.
fn play(world: &World, events: &[Event]) -> Result<Hits, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut worlds = vec![world.clone()];
    for event in events {
        if let Event::Change(change) = event {
            worlds.push(worlds[worlds.len() - 1].with(change));
        }
    }
    runtime.block_on(async {
        let mut worlds = worlds.iter();
        let world = worlds.next().unwrap();
        let (mut stage, tokens) = Stage::of(world).await;
        let mut model = Model::new(world, &tokens);
        for (number, event) in events.iter().enumerate() {
            match event {
                Event::Change(_) => {
                    let world = worlds.next().unwrap();
                    stage.change(world).await;
                    model.change(world);
                }
                Event::Pass(millis) => {
                    tokio::time::advance(Duration::from_millis(*millis)).await;
                    model.pass(*millis);
                }
                Event::Set(seconds) => {
                    Stage::set_forward(*seconds);
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
        Ok(model.hits())
    })
}

fn add(all: &mut Hits, happened: Hits) {
    for (what, often) in happened {
        *all.entry(what).or_default() += often;
    }
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Compares the two on so many requests, and tells what happened.
fn compare(seed: u64, part: u64, requests: u64) -> Hits {
    let bytes: Vec<u8> = [seed, part + 1].into_iter().flat_map(u64::to_le_bytes).collect();
    let config =
        Config { failure_persistence: None, max_shrink_iters: 20_000, max_shrink_time: 120_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::XorShift, &bytes));
    let strategy = (cases::world(), vec(cases::event(), 1..=EVENTS));
    let (asked, hits) = (Cell::new(0), RefCell::new(Hits::new()));
    while asked.get() < requests {
        let tree = strategy.new_tree(&mut runner).unwrap();
        let outcome = runner.run_one(tree, |(world, events)| {
            let happened = play(&world, &events).map_err(TestCaseError::fail)?;
            asked.set(asked.get() + events.iter().filter(|event| matches!(event, Event::Ask(..))).count() as u64);
            add(&mut hits.borrow_mut(), happened);
            Ok(())
        });
        match outcome {
            Ok(_) => {}
            Err(TestError::Fail(why, (world, events))) => {
                let events = events.iter().map(|event| format!("{event:?}")).collect::<Vec<_>>().join("\n");
                panic!("DOORMAN_MODEL_SEED={seed}: the gateway does not do what it should\n{world:?}\n{events}\n{why}")
            }
            Err(TestError::Abort(why)) => panic!("DOORMAN_MODEL_SEED={seed}: {why}"),
        }
    }
    hits.into_inner()
}

/// The same on all processors. What happens depends on nothing but the seed and the number of requests.
fn compare_all(seed: u64, requests: u64) -> Hits {
    const PARTS: u64 = 8;
    let next = AtomicU64::new(0);
    let mut all = Hits::new();
    std::thread::scope(|scope| {
        let work = || {
            let parts =
                std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed)).take_while(|part| *part < PARTS);
            parts.map(|part| compare(seed, part, requests.div_ceil(PARTS))).collect::<Vec<_>>()
        };
        let start = |_| {
            // Strategies of so many parts are large.
            std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(scope, work).unwrap()
        };
        let threads: Vec<_> = (0..std::thread::available_parallelism().map_or(1, usize::from)).map(start).collect();
        for happened in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            add(&mut all, happened);
        }
    });
    all
}

#[test]
fn the_gateway_decides_as_the_model_does() {
    let requests = variable("DOORMAN_MODEL_REQUESTS").unwrap_or(REQUESTS);
    let seed = variable("DOORMAN_MODEL_SEED");
    let all = compare_all(seed.unwrap_or(SEED), requests);
    let before = ORDERS.iter().flat_map(|codes| codes.windows(2)).map(|two| format!("{} before {}", two[0], two[1]));
    let must = before.chain(MUST_HAPPEN.iter().map(|what| (*what).to_owned()));
    let rare: Vec<_> = must.filter(|what| all.get(what).is_none_or(|often| often * RARITY < requests)).collect();
    println!("of {requests} requests: {all:#?}");
    if seed.is_none() {
        assert!(rare.is_empty() || requests < REQUESTS, "these hardly happened: {rare:#?}");
        compare_all(fastrand::u64(..), OTHER_REQUESTS);
    }
}

/// Of two refusals that stand side by side here both had reasons, and the first was told.
const ORDERS: [&[&str]; 7] = [
    &["SEC010", "SEC011", "GTW011", "GTW015"],
    &["RATE_LIMIT_EXCEEDED", "API010", "GTW003", NO_SUBSCRIPTION, NO_GROUP, "GTW014", "GTW012"],
    &["RATE_LIMIT_EXCEEDED", "REQ001", "GTW003", "Unauthorized", "GTW012"],
    &["RATE_LIMIT_EXCEEDED", "API011", "GTW003"],
    &["RATE_LIMIT_EXCEEDED", "GTW503"],
    &["GTW011", "GTW001", "CRD500", "GTW008"],
    &["REQ001", "GTW001"],
];
const NO_SUBSCRIPTION: &str = "You are not subscribed to this resource";
const NO_GROUP: &str = "You do not have the correct group for this";

/// What the requests together must have shown.
const MUST_HAPPEN: [&str; 101] = [
    // Refusals.
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
    NO_SUBSCRIPTION,
    NO_GROUP,
    // Who asks, and from where.
    "a forged token",
    "a revoked token",
    "a user who is gone",
    "a user who is not active",
    "a user whose tokens are revoked",
    "an old token",
    "no token",
    "no token of ours",
    "a local caller passes an API's list",
    "a local caller passes the filter",
    "a proxy says who",
    "an IPv4 client that is allowed",
    "an IPv4 client that is denied",
    "an IPv6 client that is allowed",
    "an IPv6 client that is denied",
    // Who is let in.
    "a public API",
    "a token that nobody asks for",
    "a user of the group",
    "a user of the role",
    "an API that asks nobody",
    "an administrator needs no subscription",
    // What limits.
    "a default tier that is off",
    "a tier that is assigned",
    "a tier that is assigned and off",
    "limits of an assignment's own",
    "no tier",
    "the default tier",
    "the default tier while no assignment holds",
    "used up: a tier's bytes",
    "used up: a user's bytes",
    "used up: a user's rate",
    "used up: a user's throttle",
    "used up: global",
    "used up: per_api",
    "used up: per_endpoint",
    "used up: per_ip",
    "used up: per_ip of a network",
    "used up: per_user",
    "used up: per_user_api",
    "used up: per_user_endpoint",
    "used up: requests of a day",
    "used up: requests of a month",
    "used up: requests_per_day",
    "used up: requests_per_hour",
    "used up: requests_per_minute",
    "used up: requests_per_second",
    "told: a user's rate",
    "told: per_ip",
    "told: per_user",
    "told: per_user_api",
    "told: per_user_endpoint",
    "told: requests of a day",
    "told: requests of a month",
    "told: requests_per_day",
    "told: requests_per_hour",
    "told: requests_per_minute",
    "told: requests_per_second",
    "a wait for a tier's window",
    "a wait for the throttle",
    // What is sent, where to, and who pays.
    "a credit is taken",
    "a key of the user's own",
    "a key that a routing's servers don't see",
    "a key that nobody pays for",
    "a header of the connection",
    "a listed header that is never sent",
    "a swap that a routing's servers don't see",
    "a swapped authorization",
    "a value that is cut",
    "a value without its tags",
    "no encoding of what is changed",
    "servers of a client key",
    "servers of an API",
    "servers of an endpoint",
    "sent: DELETE",
    "sent: GET",
    "sent: HEAD",
    "sent: POST",
    "sent: PUT",
    "a preflight",
    "a strict preflight of nothing",
];
