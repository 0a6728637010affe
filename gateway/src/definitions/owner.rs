//! Whose an object is: the platform API's, a manifest's, or that of whoever else wrote it.
//!
//! In: metadata. Out: an [`Owner`], in words a person knows. What always holds: an object is the platform API's only
//! when its label says so and nobody else has written to its spec.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};

/// Field manager of all that the platform API writes, and the value of [`MANAGED_BY`].
pub const PLATFORM: &str = "doorman-platform";
/// The label that tells whose an object is.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The annotation of an object that the platform API has given away; it counts until somebody writes to the spec.
pub const RELEASED: &str = "doorman.dev/released";

/// Labels and annotations that tools leave on what they apply.
const MARKS: [(&str, &str); 5] = [
    ("argocd.argoproj.io/tracking-id", "Argo CD"),
    ("argocd.argoproj.io/instance", "Argo CD"),
    ("kustomize.toolkit.fluxcd.io/name", "Flux"),
    ("helm.toolkit.fluxcd.io/name", "Flux"),
    ("meta.helm.sh/release-name", "Helm"),
];
/// What the names of field managers begin with, and who that is.
const MANAGERS: [(&str, &str); 5] = [
    ("kubectl", "kubectl"),
    ("argocd", "Argo CD"),
    ("kustomize-controller", "Flux"),
    ("helm-controller", "Flux"),
    ("helm", "Helm"),
];

/// Who defines an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The platform API, which may change it.
    Platform,
    /// A file of the manifest folder.
    File(Arc<str>),
    /// Somebody else in the cluster.
    Other(Arc<str>),
}

impl fmt::Display for Owner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Platform => out.write_str(PLATFORM),
            Self::File(file) => write!(out, "manifest {file}"),
            Self::Other(name) => out.write_str(name),
        }
    }
}

impl Owner {
    /// Whose an object of the cluster is.
    pub fn of(meta: &ObjectMeta) -> Self {
        let by_spec = others(meta).find(|entry| writes_spec(entry)).and_then(|entry| entry.manager.as_deref());
        let label = meta.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).map(String::as_str);
        if label == Some(PLATFORM) {
            return by_spec.map_or(Self::Platform, Self::managed_by);
        }
        let has = |mark: &str| {
            let is_in = |map: &Option<std::collections::BTreeMap<String, String>>| {
                map.as_ref().is_some_and(|map| map.contains_key(mark))
            };
            is_in(&meta.annotations) || is_in(&meta.labels)
        };
        if let Some((_, tool)) = MARKS.iter().find(|(mark, _)| has(mark)) {
            return Self::Other((*tool).into());
        }
        let is_released = meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(RELEASED));
        if is_released && by_spec.is_none() && label.is_none() {
            return Self::Other("whoever it was released to".into());
        }
        let by_any = || others(meta).find_map(|entry| entry.manager.as_deref());
        match label.filter(|label| !label.is_empty()).or(by_spec).or_else(by_any) {
            Some(manager) => Self::managed_by(manager),
            None => Self::Other("somebody in the cluster".into()),
        }
    }

    /// The tool that keeps an object as it is somewhere else, and would take every change back.
    pub fn keeper(&self) -> Option<&str> {
        let tools = ["Argo CD", "Flux", "Helm"];
        match self {
            Self::Other(name) => tools.into_iter().find(|tool| **tool == **name),
            Self::Platform | Self::File(_) => None,
        }
    }

    /// The owner that a field manager stands for.
    pub(super) fn managed_by(manager: &str) -> Self {
        let known = MANAGERS.iter().find(|(start, _)| manager.starts_with(start));
        Self::Other(known.map_or(manager, |(_, tool)| tool).into())
    }
}

/// Who but the platform API has written to more than the status.
fn others(meta: &ObjectMeta) -> impl Iterator<Item = &ManagedFieldsEntry> {
    meta.managed_fields.iter().flatten().filter(|entry| is_other(entry))
}

fn is_other(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() != Some(PLATFORM) && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

/// What is left of managed fields when those of others, but for the status, are taken away.
pub(super) fn without_others(meta: &ObjectMeta) -> Vec<ManagedFieldsEntry> {
    meta.managed_fields.iter().flatten().filter(|entry| !is_other(entry)).cloned().collect()
}

/// What is left of them when the platform API's are taken away.
pub(super) fn without_platform(meta: &ObjectMeta) -> Vec<ManagedFieldsEntry> {
    let is_ours = |entry: &&ManagedFieldsEntry| entry.manager.as_deref() == Some(PLATFORM);
    meta.managed_fields.iter().flatten().filter(|entry| !is_ours(entry)).cloned().collect()
}

/// An entry without its fields is one that [`keep_owner`] has left: the owner's.
fn writes_spec(entry: &ManagedFieldsEntry) -> bool {
    entry.fields_v1.as_ref().is_none_or(|fields| fields.0.get("f:spec").is_some())
}

/// Drops the managed fields, which are half of an object's size, but for the name of who makes the object another's.
pub(super) fn keep_owner(meta: &mut ObjectMeta) {
    let owner = Owner::of(meta);
    meta.managed_fields = None;
    if let Owner::Other(name) = &owner
        && Owner::of(meta) != owner
    {
        let entry = ManagedFieldsEntry { manager: Some(name.to_string()), ..ManagedFieldsEntry::default() };
        meta.managed_fields = Some(vec![entry]);
    }
}

/// An object that defines something, in one state, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Whose it is.
    pub owner: Owner,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name there.
    pub name: Box<str>,
    /// Its uid.
    pub uid: Box<str>,
    /// Which state of it this is.
    pub generation: i64,
}

impl Origin {
    /// Of an object, in the cluster or of this file of a folder.
    pub fn of(meta: &ObjectMeta, file: Option<&Arc<str>>) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default().into();
        Self {
            owner: file.map_or_else(|| Owner::of(meta), |file| Owner::File(file.clone())),
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            uid: text(&meta.uid),
            generation: meta.generation.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn meta(value: Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    fn entry(manager: &str, part: &str, subresource: &str) -> Value {
        json!({ "manager": manager, "operation": "Apply", "subresource": subresource, "fieldsType": "FieldsV1", "fieldsV1": { part: {} } })
    }

    fn ours(entries: Value) -> Value {
        json!({ "labels": { MANAGED_BY: PLATFORM }, "managedFields": entries })
    }

    #[test]
    fn the_owner_is_named_as_people_know_it_and_stays_when_managed_fields_are_dropped() {
        let (own, status) = (entry(PLATFORM, "f:spec", ""), entry("doorman-operator", "f:status", "status"));
        for (object, owner) in [
            (ours(json!([own, status])), PLATFORM),
            (ours(json!([own, entry("kubectl-label", "f:metadata", "")])), PLATFORM),
            (ours(json!([own, entry("kubectl-edit", "f:spec", "")])), "kubectl"),
            (json!({ "managedFields": [status, entry("kubectl", "f:spec", "")] }), "kubectl"),
            (json!({ "managedFields": [entry("kubectl-client-side-apply", "f:spec", "")] }), "kubectl"),
            (json!({ "managedFields": [entry("somebody", "f:spec", "")] }), "somebody"),
            (json!({ "managedFields": [own, entry("kubectl-label", "f:metadata", "")] }), "kubectl"),
            (json!({ "labels": { MANAGED_BY: "Helm" }, "managedFields": [entry("helm", "f:spec", "")] }), "Helm"),
            (
                json!({ "labels": { MANAGED_BY: "team-a" }, "managedFields": [entry("kubectl", "f:spec", "")] }),
                "team-a",
            ),
            (
                json!({ "annotations": { "argocd.argoproj.io/tracking-id": "shop:x" }, "managedFields": [entry("kubectl", "f:spec", "")] }),
                "Argo CD",
            ),
            (json!({ "labels": { "kustomize.toolkit.fluxcd.io/name": "shop" } }), "Flux"),
            (json!({ "managedFields": [entry("kustomize-controller", "f:spec", "")] }), "Flux"),
            (json!({}), "somebody in the cluster"),
            (json!({ "annotations": { RELEASED: "" }, "managedFields": [status] }), "whoever it was released to"),
            (json!({ "annotations": { RELEASED: "" }, "managedFields": [entry("kubectl", "f:spec", "")] }), "kubectl"),
            (json!({ "annotations": { RELEASED: "", "meta.helm.sh/release-name": "a" } }), "Helm"),
        ] {
            let mut meta = meta(object.clone());
            assert_eq!(Owner::of(&meta).to_string(), owner, "{object}");
            keep_owner(&mut meta);
            assert_eq!(Owner::of(&meta).to_string(), owner, "{object}, made small");
            let small = meta.clone();
            keep_owner(&mut meta);
            assert_eq!(meta, small);
        }
    }

    #[test]
    fn only_an_object_of_the_platform_is_its_own() {
        assert_eq!(Owner::of(&meta(ours(json!([entry(PLATFORM, "f:spec", "")])))), Owner::Platform);
        let unlabelled = meta(json!({ "managedFields": [entry(PLATFORM, "f:spec", "")] }));
        assert_ne!(Owner::of(&unlabelled), Owner::Platform);
        // The label's word is not an owner's name.
        let named = meta(json!({ "managedFields": [entry("doorman-platform-2", "f:spec", "")] }));
        assert_eq!(Owner::of(&named), Owner::Other("doorman-platform-2".into()));
    }
}
