//! Leader election by a Lease, as client-go does it: whoever holds it renews it; one that stays the same for its whole
//! duration, by the observer's own clock, may be taken.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::{sleep, timeout};

/// How long a lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// When a holder that could not renew gives up; before others may take over.
const DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two tries.
const RETRY: Duration = Duration::from_secs(2);
/// How long giving it back may take: a pod that is to end must not wait for an API server that is away.
const RELEASE: Duration = Duration::from_secs(2);

/// A claim to lead.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// The last state seen of another's lease, and when it was first seen.
    seen: Option<(String, Instant)>,
}

impl Leadership {
    /// In this namespace, by this name.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            seen: None,
        }
    }

    /// Waits until this process leads.
    pub async fn acquire(&mut self) {
        loop {
            match timeout(DEADLINE, self.hold()).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the Lease can't be had; trying again"),
                Err(_) => tracing::warn!("the Lease can't be had: no answer; trying again"),
            }
            sleep(RETRY).await;
        }
    }

    /// Keeps leading; returns when that is lost.
    pub async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            sleep(RETRY).await;
            let left = DEADLINE.saturating_sub(renewed.elapsed());
            match timeout(left, self.hold()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => tracing::warn!(%error, "the Lease can't be renewed; trying again"),
            }
        }
    }

    /// Gives the lead back, so that the next need not wait. That is worth a short try only: a Lease that is not given
    /// back runs out.
    pub async fn release(&self) {
        match timeout(RELEASE, self.give_back()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the Lease can't be given back; it runs out by itself"),
            Err(_) => tracing::warn!("the Lease can't be given back: no answer; it runs out by itself"),
        }
    }

    async fn give_back(&self) -> kube::Result<()> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
        else {
            return Ok(());
        };
        spec.holder_identity = None;
        self.api.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
    }

    /// Takes or renews the lease; false when another has it.
    async fn hold(&mut self) -> kube::Result<bool> {
        let now = MicroTime(Timestamp::now());
        let found = self.api.get_opt(&self.name).await?;
        let before = found.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_mine = before.holder_identity.as_ref() == Some(&self.identity);
        if let Some(lease) = &found
            && !is_mine
            && before.holder_identity.as_ref().is_some_and(|holder| !holder.is_empty())
        {
            let version = lease.metadata.resource_version.clone().unwrap_or_default();
            let duration = before.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            match &self.seen {
                Some((seen, since)) if *seen == version => {
                    if since.elapsed() < duration.map_or(DURATION, Duration::from_secs) {
                        return Ok(false);
                    }
                }
                _ => {
                    self.seen = Some((version, Instant::now()));
                    return Ok(false);
                }
            }
        }
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if is_mine { before.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(
                before.lease_transitions.unwrap_or_default() + i32::from(!is_mine && found.is_some()),
            ),
            ..LeaseSpec::default()
        };
        let result = if let Some(lease) = found {
            let lease = Lease { spec: Some(spec), ..lease };
            self.api.replace(&self.name, &PostParams::default(), &lease).await
        } else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
        };
        match result {
            Ok(_) => Ok(true),
            // Somebody else wrote in between.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::Config;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn giving_the_lead_back_does_not_wait_for_an_api_server_that_is_away() {
        // It takes connections and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        let client = Client::try_from(config).unwrap();
        let leadership = Leadership::new(client, "doorman-system", "doorman-operator", "pod-1");
        timeout(RELEASE * 2, leadership.release()).await.expect("it goes on waiting");
    }
}
