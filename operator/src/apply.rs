//! The only place that writes: status and rendered objects by server-side apply, under one field manager.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use doorman_crds::{DoormanApi, DoormanGateway, DoormanRole};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};

use crate::metrics::Metrics;
use crate::render::{GATEWAY_ANNOTATION, GeneratedSecret, Grant, Kind, MANAGER, NeededKey, Object};
use crate::world::{Applied, Event, Job, Outcome, OwnedKey, StatusOf, Target, Version, WriteError};

/// Random bytes of a generated key.
const KEY_BYTES: usize = 32;

/// The cluster, for writing.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    metrics: Metrics,
}

fn is_gone(error: &kube::Error) -> bool {
    // 409: the uid is another one by now.
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
}

/// Whether an object in the cluster was made for the same gateway as this one: has its owner or, in the whole cluster,
/// its annotation.
fn is_ours(found: &ObjectMeta, wanted: &Value) -> bool {
    if let Some(uid) = wanted["ownerReferences"][0]["uid"].as_str() {
        return found.owner_references.iter().flatten().any(|owner| owner.uid == uid);
    }
    let annotation = found.annotations.as_ref().and_then(|annotations| annotations.get(GATEWAY_ANNOTATION));
    annotation.map(String::as_str) == wanted["annotations"][GATEWAY_ANNOTATION].as_str()
}

impl Writer {
    /// Writes through this client.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        Self { client, metrics }
    }

    fn api(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        }
    }

    /// Writes the status of the object with this uid.
    pub async fn write(self, target: Target, uid: String, status: StatusOf) -> Event {
        let (resource, id) = match &target {
            Target::Gateway(id) => (ApiResource::erase::<DoormanGateway>(&()), id),
            Target::Api(id) => (ApiResource::erase::<DoormanApi>(&()), id),
            Target::Role(id) => (ApiResource::erase::<DoormanRole>(&()), id),
        };
        let status = match &status {
            StatusOf::Gateway(status) => json!(status),
            StatusOf::Api(status) => json!(status),
            StatusOf::Role(status) => json!(status),
        };
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": id.name, "namespace": id.namespace, "uid": uid },
            "status": status,
        });
        let parameters = PatchParams::apply(MANAGER).force();
        let api = self.api(&resource, &id.namespace);
        let result = api.patch_status(&id.name, &parameters, &Patch::Apply(&patch)).await;
        self.metrics.wrote(&resource.kind, result.is_ok());
        let result = match result {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Err(WriteError::Gone),
            Err(error) => {
                tracing::warn!(kind = resource.kind, object = %id, %error, "the status can't be written; trying again");
                Err(WriteError::Failed)
            }
        };
        Event::Written(target, result)
    }

    /// Brings a gateway's objects to what is rendered: what is missing or different is applied, the rest not touched.
    pub async fn reconcile(self, job: Job) -> Event {
        let Job { gateway, rendered, mut applied, remove } = job;
        let mut outcome = Outcome::default();
        let mut failures = Vec::new();
        for secret in &rendered.generated {
            if let Err(error) = self.generate(secret).await {
                failures.push(format!("Secret {}: {error:#}", secret.metadata.name.as_deref().unwrap_or_default()));
            }
        }
        match self.missing(&gateway.namespace, &rendered.needed).await {
            Ok(missing) => outcome.missing_keys = Some(missing),
            Err(error) => failures.push(format!("Secrets can't be read: {error}")),
        }
        let mut has_settings = true;
        for object in rendered.objects {
            let kind = object.kind;
            // No pod starts with what somebody else has put in the place of its settings.
            if kind == Kind::Deployment && !has_settings {
                continue;
            }
            if let Err(failure) = self.keep(object, &mut applied, &mut outcome.applied).await {
                has_settings &= kind != Kind::ConfigMap;
                failures.push(failure);
            }
        }
        for Grant { namespace, objects } in rendered.grants {
            for object in objects {
                if let Err(failure) = self.keep(object, &mut applied, &mut outcome.applied).await {
                    tracing::warn!(%gateway, namespace, failure, "Secrets can't be granted; trying again");
                    outcome.ungranted.entry(namespace.clone()).or_insert(failure);
                }
            }
        }
        for key in remove {
            if let Err(error) = self.remove(&key).await {
                failures.push(format!("{:?} {} can't be removed: {error}", key.kind, key.id.name));
            }
        }
        if let Some(first) = failures.first() {
            tracing::warn!(%gateway, failures = failures.join("; "), "not everything could be written; trying again");
            outcome.failure = Some(first.clone());
        }
        Event::Reconciled(gateway, outcome)
    }

    /// Applies what is not applied so already; the error tells of which object.
    async fn keep(
        &self,
        object: Object,
        before: &mut BTreeMap<OwnedKey, Applied>,
        now: &mut BTreeMap<OwnedKey, Applied>,
    ) -> Result<(), String> {
        let key = OwnedKey::of(&object);
        let applied = match before.remove(&key).filter(|before| before.manifest == object.manifest) {
            Some(before) => before,
            None => match self.apply(&key, object).await {
                Ok(applied) => applied,
                Err(error) => return Err(format!("{:?} {}: {error:#}", key.kind, key.id.name)),
            },
        };
        now.insert(key, applied);
        Ok(())
    }

    async fn apply(&self, key: &OwnedKey, object: Object) -> anyhow::Result<Applied> {
        let api = self.api(&key.kind.resource(), &key.id.namespace);
        let found = api.get_metadata_opt(&key.id.name).await?;
        if let Some(found) = found.filter(|found| !is_ours(&found.metadata, &object.manifest["metadata"])) {
            bail!(
                "it exists and does not belong to this gateway; remove it, or give the gateway another name{}",
                if found.metadata.deletion_timestamp.is_some() { " (it is being removed)" } else { "" }
            );
        }
        let parameters = PatchParams::apply(MANAGER).force();
        let result = api.patch(&key.id.name, &parameters, &Patch::Apply(&object.manifest)).await;
        self.metrics.wrote(&key.kind.resource().kind, result.is_ok());
        Ok(Applied { version: Version::of(&result?.metadata), manifest: object.manifest })
    }

    /// Removes an object; that it is gone already is fine.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn remove(&self, key: &OwnedKey) -> kube::Result<()> {
        let api = self.api(&key.kind.resource(), &key.id.namespace);
        let result = api.delete(&key.id.name, &DeleteParams::default()).await;
        self.metrics.wrote(&key.kind.resource().kind, result.is_ok());
        match result {
            Err(error) if !is_gone(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Creates a Secret unless it exists; one that exists is never changed.
    async fn generate(&self, secret: &GeneratedSecret) -> anyhow::Result<()> {
        let ObjectMeta { name: Some(name), namespace: Some(namespace), .. } = &secret.metadata else {
            anyhow::bail!("it has no name");
        };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        if api.get_metadata_opt(name).await?.is_some() {
            return Ok(());
        }
        let mut bytes = [0_u8; KEY_BYTES];
        getrandom::fill(&mut bytes).context("no randomness")?;
        let object = Secret {
            metadata: secret.metadata.clone(),
            type_: Some("Opaque".to_owned()),
            string_data: Some(BTreeMap::from([(secret.key.clone(), BASE64_URL_SAFE_NO_PAD.encode(bytes))])),
            ..Secret::default()
        };
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let result = api.create(&parameters, &object).await;
        self.metrics.wrote(&Secret::kind(&()), result.is_ok());
        match result {
            // Somebody was faster: theirs counts.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }

    /// Needed keys that don't exist, in words.
    async fn missing(&self, namespace: &str, needed: &[NeededKey]) -> kube::Result<Vec<String>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let mut secrets: BTreeMap<&str, Option<Secret>> = BTreeMap::new();
        let mut missing = Vec::new();
        for key in needed {
            if !secrets.contains_key(key.secret.as_str()) {
                secrets.insert(&key.secret, api.get_opt(&key.secret).await?);
            }
            let found = secrets.get(key.secret.as_str()).and_then(Option::as_ref);
            let has_key = |secret: &Secret| {
                let is_wanted = |name: &String| key.key.as_ref().is_none_or(|wanted| wanted == name);
                secret.data.as_ref().is_some_and(|data| data.keys().any(is_wanted))
            };
            match found.map(has_key) {
                Some(true) => {}
                Some(false) => {
                    let wanted = key.key.as_ref().map_or_else(|| "keys".to_owned(), |wanted| format!("key {wanted}"));
                    missing.push(format!("{}: Secret {} has no {wanted}", key.field, key.secret));
                }
                None => missing.push(format!("{}: Secret {} does not exist", key.field, key.secret)),
            }
        }
        missing.dedup();
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_others_are_told_apart() {
        let meta = |value: Value| serde_json::from_value::<ObjectMeta>(value).unwrap();
        let owner = |uid: &str| json!([{ "apiVersion": "doorman.dev/v1alpha1", "kind": "DoormanGateway", "name": "edge", "uid": uid }]);
        let wanted = json!({ "name": "edge", "ownerReferences": owner("1") });
        assert!(is_ours(&meta(json!({ "name": "edge", "ownerReferences": owner("1") })), &wanted));
        assert!(!is_ours(&meta(json!({ "name": "edge", "ownerReferences": owner("2") })), &wanted));
        assert!(!is_ours(&meta(json!({ "name": "edge" })), &wanted));
        let wanted = json!({ "name": "a", "annotations": { GATEWAY_ANNOTATION: "shop/edge" } });
        assert!(is_ours(&meta(json!({ "annotations": { GATEWAY_ANNOTATION: "shop/edge" } })), &wanted));
        assert!(!is_ours(&meta(json!({ "annotations": { GATEWAY_ANNOTATION: "shop/other" } })), &wanted));
        assert!(!is_ours(&meta(json!({})), &wanted));
    }
}
