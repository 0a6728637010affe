//! Adding endpoints to an API: one by hand, or many at once from a document that describes them.
//!
//! In: endpoints. Out: they are served, but for those that clash with others. What always holds: whatever an API has of
//! endpoints can be served together, so that no addition takes it out of service; all that is added to an object is
//! added in one write.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use doorman_crds::{
    DoormanApiSpec,
    api::{ApiKey, EndpointSpec},
    path::{PathTemplate, Shape},
};
use mongodb::bson::{Bson, Document};
use serde_json::Value;
use uuid::Uuid;

use super::NewEndpoint;
use crate::{
    definitions::{
        documents::problems,
        fields::{self, Members},
    },
    platform::{
        Platform,
        answer::Refusal,
        definitions::{Place, must_be_servable, must_fit, unfit},
        known,
        wire::given,
    },
    store::{Collection, StoreError, plain_document},
};

/// Why an endpoint can't be beside the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::platform) enum Clash {
    /// There is one of this method and path, or one that answers the same calls.
    Exists,
    /// Clients reach another one by its own path for clients.
    ClientUri,
    /// A path that can't be served.
    Unusable(String),
}

/// The endpoints of an API, as others must not be.
#[derive(Default)]
pub(super) struct Taken {
    names: HashSet<(String, String)>,
    calls: HashSet<(String, Shape)>,
}

/// Method, path on the upstream, and path for clients if that is another.
pub(super) type Paths<'a> = (&'a str, &'a str, Option<&'a str>);

fn template(member: &str, text: &str) -> Result<PathTemplate, Clash> {
    PathTemplate::parse(&fields::slashed(text)).map_err(|why| Clash::Unusable(format!("{member}: {why}")))
}

/// The calls that an endpoint answers.
fn calls((method, uri, client_uri): Paths<'_>) -> Result<(String, Shape), Clash> {
    let upstream = template("endpoint_uri", uri)?;
    let client = client_uri.map(|uri| template("client_uri", uri)).transpose()?;
    if let Some(name) = client.as_ref().and_then(|client| upstream.missing_in(client)) {
        return Err(Clash::Unusable(format!("client_uri: has no parameter `{{{name}}}`, which endpoint_uri needs")));
    }
    Ok((method.to_ascii_uppercase(), client.unwrap_or(upstream).shape()))
}

impl Taken {
    /// All of these; what is stored and can't be served takes nothing but its name.
    pub(super) fn by<'a>(endpoints: impl IntoIterator<Item = Paths<'a>>) -> Self {
        let mut taken = Self::default();
        for paths in endpoints {
            taken.names.insert((paths.0.to_owned(), fields::slashed(paths.1)));
            taken.calls.extend(calls(paths));
        }
        taken
    }

    pub(super) fn by_object(spec: &DoormanApiSpec) -> Self {
        Self::by(spec.endpoints.iter().flatten().map(of_object))
    }

    pub(super) fn by_documents<'a>(documents: impl IntoIterator<Item = &'a Members>) -> Self {
        Self::by(documents.into_iter().filter_map(of_document))
    }

    /// Takes what one more endpoint needs, if it can.
    pub(super) fn take(&mut self, paths: Paths<'_>) -> Result<(), Clash> {
        let name = (paths.0.to_owned(), fields::slashed(paths.1));
        if self.names.contains(&name) {
            return Err(Clash::Exists);
        }
        if !self.calls.insert(calls(paths)?) {
            return Err(if paths.2.is_some() { Clash::ClientUri } else { Clash::Exists });
        }
        self.names.insert(name);
        Ok(())
    }
}

pub(super) fn of_object(endpoint: &EndpointSpec) -> Paths<'_> {
    (endpoint.method.as_str(), &endpoint.uri, endpoint.client_uri.as_deref())
}

pub(super) fn of_document(document: &Members) -> Option<Paths<'_>> {
    let text = |member: &str| document.get(member).and_then(Value::as_str);
    Some((text("endpoint_method")?, text("endpoint_uri")?, text("client_uri")))
}

fn of_new(new: &NewEndpoint) -> Paths<'_> {
    (&new.endpoint_method.0, &new.endpoint_uri.0, new.client_uri.as_ref().map(|uri| &*uri.0))
}

/// What came of many.
#[derive(Debug, Default)]
pub(in crate::platform) struct Outcome {
    /// How many were added.
    pub(in crate::platform) added: usize,
    /// Those that were not, by their place, and why.
    pub(in crate::platform) clashes: Vec<(usize, Clash)>,
}

/// Adds endpoints to an API of which there may be none, and waits until they are served. What clashes with another is
/// looked at by `clashed`: passed over, or a reason to add none.
pub(in crate::platform) async fn add_all(
    platform: &Platform,
    key: &ApiKey,
    new: &[NewEndpoint],
    missing: impl Fn() -> Refusal,
    clashed: impl Fn(&Clash) -> Result<(), Refusal>,
) -> Result<Outcome, Refusal> {
    let choose = |taken: &mut Taken| {
        let mut outcome = Outcome::default();
        let mut chosen = Vec::new();
        for (place, endpoint) in new.iter().enumerate() {
            match taken.take(of_new(endpoint)) {
                Ok(()) => chosen.push(place),
                Err(clash) => {
                    clashed(&clash)?;
                    outcome.clashes.push((place, clash));
                }
            }
        }
        outcome.added = chosen.len();
        Ok::<_, Refusal>((outcome, chosen))
    };
    if let Place::Cluster(writer, object) = known::place(platform, key)? {
        let specs = new.iter().map(spec).collect::<Result<Vec<_>, Refusal>>()?;
        // Of the last try, which is the one that was written.
        let last = Mutex::new(Outcome::default());
        let change = |spec: &mut DoormanApiSpec| {
            let (outcome, chosen) = choose(&mut Taken::by_object(spec))?;
            let chosen = chosen.into_iter().filter_map(|place| specs.get(place).cloned());
            spec.endpoints.get_or_insert_default().extend(chosen);
            spec.endpoints.take_if(|endpoints| endpoints.is_empty());
            let changes = outcome.added > 0;
            *last.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
            Ok(changes)
        };
        known::change(platform, (writer, &object), key, missing, change).await?;
        return Ok(last.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
    for one in new {
        given(one)?;
    }
    let store = platform.identity.store();
    let api = store.find(Collection::Apis, &[&key.name, &key.version]).await?.ok_or_else(missing)?;
    let api_id = api.get_str("api_id").unwrap_or_default();
    let stored = known::endpoints(platform, key).await?;
    let (mut outcome, chosen) = choose(&mut Taken::by_documents(&stored))?;
    let document = |place: usize| {
        let mut document = given(new.get(place)?).ok()?;
        for member in ["endpoint_servers", "client_uri"] {
            document.entry(member).or_insert(Bson::Null);
        }
        document.insert("api_id", api_id);
        document.insert("endpoint_id", Uuid::new_v4().to_string());
        Some((place, Arc::new(document)))
    };
    let (places, documents): (Vec<_>, Vec<_>) = chosen.into_iter().filter_map(document).unzip();
    // Before any of them is kept.
    must_be_servable(|| problems(&api, &[]), problems(&api, &documents))?;
    let mut lost = Vec::new();
    for (place, document) in places.iter().zip(&documents) {
        match store.insert(Collection::Endpoints, Document::clone(document)).await {
            Ok(()) => {}
            // Somebody else was faster.
            Err(StoreError::Taken) => lost.push((*place, Clash::Exists)),
            Err(error) => return Err(error.into()),
        }
    }
    lost.extend(take_back_clashing(platform, key, &places, &documents).await?);
    for (place, clash) in lost {
        clashed(&clash)?;
        outcome.added -= 1;
        outcome.clashes.push((place, clash));
    }
    platform.until_served().await;
    Ok(outcome)
}

/// Takes back what clashes with endpoints that others have stored meanwhile: both together would take the API out of
/// service. Two that do so at the same time may both lose, and never both win.
async fn take_back_clashing(
    platform: &Platform,
    key: &ApiKey,
    places: &[usize],
    documents: &[Arc<Document>],
) -> Result<Vec<(usize, Clash)>, StoreError> {
    let ids: HashSet<&str> = documents.iter().filter_map(|own| own.get_str("endpoint_id").ok()).collect();
    let (own, others): (Vec<_>, Vec<_>) = known::endpoints(platform, key)
        .await?
        .into_iter()
        .partition(|one| one.get("endpoint_id").and_then(Value::as_str).is_some_and(|id| ids.contains(id)));
    let mut taken = Taken::by_documents(&others);
    let mut lost = Vec::new();
    for one in &own {
        let Some(Err(clash)) = of_document(one).map(|paths| taken.take(paths)) else { continue };
        let id = one.get("endpoint_id").and_then(Value::as_str);
        let place = documents.iter().position(|document| document.get_str("endpoint_id").ok() == id);
        let Some((place, document)) = place.and_then(|at| Some((*places.get(at)?, documents.get(at)?))) else {
            continue;
        };
        let name = Collection::Endpoints.key_of(document).unwrap_or_default();
        let name: Vec<&str> = name.iter().map(String::as_str).collect();
        platform.identity.store().remove(Collection::Endpoints, &name).await?;
        lost.push((place, clash));
    }
    Ok(lost)
}

/// An endpoint as objects have it.
fn spec(new: &NewEndpoint) -> Result<EndpointSpec, Refusal> {
    let method = fields::method(&new.endpoint_method.0).map_err(|misfit| unfit(&misfit))?;
    let mut endpoint = fields::blank_endpoint(method, &new.endpoint_uri.0);
    must_fit(&fields::set_endpoint(&mut endpoint, &plain_document(&given(new)?)))?;
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_the_same_calls_is_taken() {
        let taken = || Taken::by([("GET", "/a/{id}", None), ("post", "b", None), ("PUT", "/x/{a}", Some("/c/{a}"))]);
        for (paths, expected) in [
            (("GET", "/a/{id}", None), Err(Clash::Exists)),
            (("GET", "a/{id}", None), Err(Clash::Exists)),
            (("GET", "/a/{id}", Some("/elsewhere/{id}")), Err(Clash::Exists)),
            (("GET", "/a/{key}", None), Err(Clash::Exists)),
            (("get", "/a//{key}/", None), Err(Clash::Exists)),
            (("POST", "/b", None), Err(Clash::Exists)),
            (("GET", "/y/{z}", Some("/a/{z}")), Err(Clash::ClientUri)),
            (("PUT", "/c/{b}", None), Err(Clash::Exists)),
            (("PUT", "/x/{b}", None), Ok(())),
            (("GET", "/a/id", None), Ok(())),
            (("DELETE", "/a/{id}", None), Ok(())),
            (("GET", "/", None), Ok(())),
        ] {
            assert_eq!(taken().take(paths), expected, "{paths:?}");
        }
    }

    #[test]
    fn what_can_not_be_served_is_named() {
        for (uri, client_uri, member) in [
            ("/a/../b", None, "endpoint_uri: "),
            ("/a{b}", None, "endpoint_uri: "),
            ("/a?b", None, "endpoint_uri: "),
            ("/a", Some("/{x}{y}"), "client_uri: "),
            ("/a/{id}", Some("/b"), "client_uri: has no parameter `{id}`"),
        ] {
            let Err(Clash::Unusable(why)) = Taken::default().take(("GET", uri, client_uri)) else { panic!("{uri}") };
            assert!(why.starts_with(member), "{why}");
        }
        // What an older version let in stands in nobody's way.
        assert_eq!(Taken::by([("GET", "/a{b}", None)]).take(("GET", "/c", None)), Ok(()));
    }

    #[test]
    fn what_was_taken_is_taken_for_the_next() {
        let mut taken = Taken::default();
        assert_eq!(taken.take(("GET", "/a/{x}", None)), Ok(()));
        assert_eq!(taken.take(("GET", "/a/{y}", None)), Err(Clash::Exists));
        assert_eq!(taken.take(("GET", "/b", Some("/c"))), Ok(()));
        assert_eq!(taken.take(("GET", "/c", None)), Err(Clash::Exists));
    }
}
