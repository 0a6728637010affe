//! What happens in the cluster, as one stream of events.

use std::collections::BTreeSet;
use std::fmt::Debug;

use doorman_crds::pauses::Pauses;
use doorman_crds::{DoormanApi, DoormanGateway, DoormanRole};
use futures::stream::{self, BoxStream, Stream, StreamExt, select_all};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::render::{self, Kind};
use crate::world::{Change, Event, ObjectId, Owned, OwnedKey, SecretMeta, Version};

/// Most events handed over at once.
const BATCH: usize = 1024;

/// One object's news, or the end of the first list.
enum News<K> {
    Put(K),
    Gone(ObjectId),
    Listed,
}

/// A watch that also tells what went away while it was interrupted.
fn news<K>(api: Api<K>, labels: Option<&str>, what: &'static str) -> impl Stream<Item = News<K>> + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = labels.map_or_else(watcher::Config::default, |labels| watcher::Config::default().labels(labels));
    let events = watcher(api, config).backoff(Pauses::default());
    let known = (BTreeSet::new(), BTreeSet::new(), false);
    events
        .scan(known, move |(known, listing, is_listed): &mut (BTreeSet<ObjectId>, BTreeSet<ObjectId>, bool), event| {
            let news = match event {
                Err(error) => {
                    tracing::warn!(what, %error, "the watch is interrupted");
                    Vec::new()
                }
                Ok(watcher::Event::Init) => {
                    listing.clear();
                    Vec::new()
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listing.insert(ObjectId::of(object.meta()));
                    vec![News::Put(object)]
                }
                Ok(watcher::Event::InitDone) => {
                    let gone: Vec<_> = known.difference(listing).cloned().map(News::Gone).collect();
                    *known = std::mem::take(listing);
                    let first = (!std::mem::replace(is_listed, true)).then_some(News::Listed);
                    gone.into_iter().chain(first).collect()
                }
                Ok(watcher::Event::Apply(object)) => {
                    known.insert(ObjectId::of(object.meta()));
                    vec![News::Put(object)]
                }
                Ok(watcher::Event::Delete(object)) => {
                    let id = ObjectId::of(object.meta());
                    known.remove(&id);
                    vec![News::Gone(id)]
                }
            };
            std::future::ready(Some(stream::iter(news)))
        })
        .flatten()
}

/// `None`: the first list is complete.
type Events = BoxStream<'static, Option<Vec<Event>>>;

fn events<K, F>(client: &Client, labels: Option<&str>, what: &'static str, event: F) -> Events
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    F: Fn(News<K>) -> Vec<Event> + Send + 'static,
{
    let news = news(Api::<K>::all(client.clone()), labels, what);
    news.map(move |news| if matches!(news, News::Listed) { None } else { Some(event(news)) }).boxed()
}

/// Objects of ours that may not have the shape we know: then only they are in trouble.
fn guarded<K>(client: &Client, what: &'static str, event: fn(Change<K>) -> Event) -> Events
where
    K: Clone + DeserializeOwned + Debug + Send + 'static + Resource<DynamicType = ()>,
    DeserializeGuard<K>: Resource<DynamicType = ()>,
{
    events::<DeserializeGuard<K>, _>(client, None, what, move |news| match news {
        News::Listed => Vec::new(),
        News::Gone(id) => vec![event(Change::Gone(id))],
        News::Put(guard) => {
            let meta = Box::new(guard.meta().clone());
            vec![event(match guard.0 {
                Ok(object) => Change::Put(Box::new(object)),
                Err(invalid) => Change::Unreadable(meta, invalid.error),
            })]
        }
    })
}

fn owned_key(kind: Kind, id: ObjectId) -> OwnedKey {
    OwnedKey { kind, id }
}

fn owned(kind: Kind, meta: &ObjectMeta) -> Event {
    let owners = meta.owner_references.iter().flatten();
    let annotation = meta.annotations.as_ref().and_then(|annotations| annotations.get(render::GATEWAY_ANNOTATION));
    let gateway = annotation.and_then(|gateway| gateway.split_once('/'));
    let owned = Owned {
        version: Version::of(meta),
        owner: owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone()).next(),
        gateway: gateway.map(|(namespace, name)| ObjectId { namespace: namespace.to_owned(), name: name.to_owned() }),
    };
    Event::Owned(owned_key(kind, ObjectId::of(meta)), Some(owned))
}

/// Objects that the operator made; only their metadata is read.
fn metadata<K>(client: &Client, labels: &str, kind: Kind) -> Events
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + 'static,
    PartialObjectMeta<K>: Resource<DynamicType = ()> + DeserializeOwned,
{
    events::<PartialObjectMeta<K>, _>(client, Some(labels), "an owned kind", move |news| match news {
        News::Listed => Vec::new(),
        News::Gone(id) => vec![Event::Owned(owned_key(kind, id), None)],
        News::Put(object) => vec![owned(kind, object.meta())],
    })
}

/// Everything the operator acts on. [`Event::Complete`] comes once, after the first list of each kind.
pub fn all(client: &Client) -> BoxStream<'static, Vec<Event>> {
    let own = format!("app.kubernetes.io/managed-by={}", render::MANAGER);
    let streams = vec![
        guarded::<DoormanGateway>(client, "DoormanGateway", Event::Gateway),
        guarded::<DoormanApi>(client, "DoormanApi", Event::Api),
        guarded::<DoormanRole>(client, "DoormanRole", Event::Role),
        events::<PartialObjectMeta<Namespace>, _>(client, None, "Namespace", |news| match news {
            News::Listed => Vec::new(),
            News::Gone(id) => vec![Event::Namespace(id.name, None)],
            News::Put(object) => {
                let labels = object.metadata.labels.unwrap_or_default();
                vec![Event::Namespace(object.metadata.name.unwrap_or_default(), Some(labels))]
            }
        }),
        events::<PartialObjectMeta<Secret>, _>(client, None, "Secret", |news| match news {
            News::Listed => Vec::new(),
            News::Gone(id) => vec![Event::Secret(id, None)],
            News::Put(object) => {
                vec![Event::Secret(ObjectId::of(&object.metadata), Some(SecretMeta::of(&object.metadata)))]
            }
        }),
        events::<Pod, _>(client, Some(&own), "Pod", |news| match news {
            News::Listed => Vec::new(),
            News::Gone(id) => vec![Event::Pod(Change::Gone(id))],
            News::Put(pod) => vec![Event::Pod(Change::Put(Box::new(pod)))],
        }),
        events::<Deployment, _>(client, Some(&own), "Deployment", |news| match news {
            News::Listed => Vec::new(),
            News::Gone(id) => {
                let key = owned_key(Kind::Deployment, id.clone());
                vec![Event::Deployment(Change::Gone(id)), Event::Owned(key, None)]
            }
            News::Put(object) => {
                vec![owned(Kind::Deployment, &object.metadata), Event::Deployment(Change::Put(Box::new(object)))]
            }
        }),
        metadata::<ServiceAccount>(client, &own, Kind::ServiceAccount),
        metadata::<Role>(client, &own, Kind::Role),
        metadata::<RoleBinding>(client, &own, Kind::RoleBinding),
        metadata::<ClusterRoleBinding>(client, &own, Kind::ClusterRoleBinding),
        metadata::<ConfigMap>(client, &own, Kind::ConfigMap),
        metadata::<Service>(client, &own, Kind::Service),
        metadata::<NetworkPolicy>(client, &own, Kind::NetworkPolicy),
        metadata::<PodDisruptionBudget>(client, &own, Kind::PodDisruptionBudget),
    ];
    let mut missing = streams.len();
    select_all(streams)
        .map(move |events| {
            events.unwrap_or_else(|| {
                missing -= 1;
                if missing == 0 { vec![Event::Complete] } else { Vec::new() }
            })
        })
        .ready_chunks(BATCH)
        .map(|batch| batch.into_iter().flatten().collect())
        .boxed()
}
