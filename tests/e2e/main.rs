//! The product on a real cluster, from `helm install` to nothing left, as one story of several scenes.
//!
//! Needs kubectl, helm and a KUBECONFIG, and the images `localhost/doorman-gateway:test`, `localhost/doorman-operator:test`,
//! `localhost/sample-upstream:test`, `localhost/redis:test` and `localhost/mongo-wire:test` on its nodes; `make e2e` sees to it.
//! With a word as argument only the scenes with it in their names run, between installing and removing.

mod cluster;
mod scenes;
mod secrets;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;

use cluster::{Cluster, kubectl};

type Scene = for<'a> fn(&'a Cluster) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// In the order they are played; the first and the last always are.
const SCENES: &[(&str, Scene)] = &[
    ("install_and_call", |c| Box::pin(scenes::install_and_call(c))),
    ("accounts_may_do_no_more_than_they_need", |c| Box::pin(scenes::accounts_may_do_no_more_than_they_need(c))),
    ("what_can_not_work_is_refused_at_once", |c| Box::pin(scenes::what_can_not_work_is_refused_at_once(c))),
    ("what_others_own_is_left_alone", |c| Box::pin(scenes::what_others_own_is_left_alone(c))),
    ("roles_are_written_through_rest", |c| Box::pin(scenes::roles_are_written_through_rest(c))),
    ("upstreams_are_called_with_secrets_of_their_owners", |c| {
        Box::pin(secrets::upstreams_are_called_with_secrets_of_their_owners(c))
    }),
    ("another_operator_takes_over", |c| Box::pin(scenes::another_operator_takes_over(c))),
    ("fleet_scales_and_rolls_under_load", |c| Box::pin(scenes::fleet_scales_and_rolls_under_load(c))),
    ("programmed_means_served_by_every_pod", |c| Box::pin(scenes::programmed_means_served_by_every_pod(c))),
    ("apis_are_written_through_rest", |c| Box::pin(scenes::apis_are_written_through_rest(c))),
    ("one_invalid_api_of_500", |c| Box::pin(scenes::one_invalid_api_of_500(c))),
    ("gateways_live_without_operator_and_api_server", |c| {
        Box::pin(scenes::gateways_live_without_operator_and_api_server(c))
    }),
    ("idle_writes_nothing", |c| Box::pin(scenes::idle_writes_nothing(c))),
    ("nothing_is_left", |c| Box::pin(scenes::nothing_is_left(c))),
];

#[tokio::main]
async fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    match play(wanted.as_deref()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn play(wanted: Option<&str>) -> anyhow::Result<()> {
    let cluster = Cluster::connect().await?;
    scenes::clear().await?;
    scenes::make_room().await?;
    let last = SCENES.len() - 1;
    for (index, (name, scene)) in SCENES.iter().enumerate() {
        if index != 0 && index != last && wanted.is_some_and(|wanted| !name.contains(wanted)) {
            continue;
        }
        let start = Instant::now();
        if let Err(error) = scene(&cluster).await {
            println!("{name}: FAILED after {:.1} s", start.elapsed().as_secs_f64());
            show().await;
            return Err(error.context(*name));
        }
        println!("{name}: ok, {:.1} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// What a person would look at first.
async fn show() {
    for arguments in [
        &["get", "doormangateways,doormanapis", "-A", "-o", "wide"][..],
        &["get", "pods", "-A", "-o", "wide"],
        &["logs", "-n", scenes::SYSTEM, "-l", "app.kubernetes.io/name=doorman-operator", "--tail=60"],
        &["logs", "-n", scenes::FLEET, "-l", "app.kubernetes.io/name=doorman-gateway", "--tail=30", "--prefix"],
        &["get", "events", "-A", "--field-selector", "type=Warning"],
    ] {
        let said = kubectl(arguments).await.unwrap_or_else(|error| error.to_string());
        let lines: Vec<_> = said.lines().take(80).collect();
        eprintln!("$ kubectl {}\n{}\n", arguments.join(" "), lines.join("\n"));
    }
}
