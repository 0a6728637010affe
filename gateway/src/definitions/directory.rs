//! A folder of manifests: the same YAML the cluster takes, read again whenever a file changes.
//!
//! Files ending in `.yaml`, `.yml` or `.json`, sub-folders included, several documents to a file. A document that is no
//! object of ours is named in the log and left out; a file that can't be parsed keeps what it last held, so that a
//! half-written edit takes nothing down.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use doorman_crds::revision::Rejection;
use doorman_crds::{DoormanApi, DoormanGateway, DoormanRole, GROUP};
use kube::ResourceExt;
use notify::RecursiveMode;
use serde::Deserialize;
use tokio::sync::watch;

use super::{Definitions, ObjectId, Secret, Secrets};
use crate::folder::Watch;

/// The folder can't be read at all.
#[derive(Debug, thiserror::Error)]
#[error("can't read the manifest folder {path}: {source}")]
pub struct FolderError {
    path: PathBuf,
    source: std::io::Error,
}

/// A folder and what its files held last.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

#[derive(Debug, Default)]
struct File {
    fingerprint: u64,
    objects: Vec<Object>,
    problems: Vec<Rejection>,
}

#[derive(Debug)]
enum Object {
    Api(ObjectId, Arc<DoormanApi>),
    Role(ObjectId, Arc<DoormanRole>),
    Secret(ObjectId, Arc<Secret>),
}

impl Object {
    fn uid(&self) -> Option<&str> {
        match self {
            Self::Api(_, api) => api.metadata.uid.as_deref(),
            Self::Role(_, role) => role.metadata.uid.as_deref(),
            Self::Secret(..) => None,
        }
    }
}

impl Directory {
    /// A folder that has not been read yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), files: BTreeMap::new() }
    }

    /// Reads what changed; `None` when nothing did.
    ///
    /// # Errors
    /// [`FolderError`] when the folder itself can't be listed; single files never fail the read.
    pub fn read(&mut self) -> Result<Option<Definitions>, FolderError> {
        let mut found = BTreeSet::new();
        list(&self.root, &mut found).map_err(|source| FolderError { path: self.root.clone(), source })?;
        let mut changed = self.files.keys().any(|path| !found.contains(path));
        self.files.retain(|path, _| found.contains(path));
        for path in found {
            let shown = path.strip_prefix(&self.root).unwrap_or(&path).display().to_string();
            let text = std::fs::read_to_string(&path);
            let mut hasher = DefaultHasher::new();
            text.as_ref().map_err(ToString::to_string).hash(&mut hasher);
            let fingerprint = hasher.finish();
            let before = self.files.get(&path);
            if before.is_some_and(|file| file.fingerprint == fingerprint) {
                continue;
            }
            changed = true;
            let file = match text.map_err(|error| error.to_string()).and_then(|text| parse(&shown, &text)) {
                Ok((objects, problems)) => File { fingerprint, objects, problems },
                Err(message) => {
                    let objects = self.files.remove(&path).map(|file| file.objects).unwrap_or_default();
                    let kept = if objects.is_empty() { "" } else { "; what it held before stays served" };
                    let problem = rejection("File", &shown, &format!("{message}{kept}"));
                    File { fingerprint, objects, problems: vec![problem] }
                }
            };
            self.files.insert(path, file);
        }
        Ok(changed.then(|| self.definitions()))
    }

    fn definitions(&self) -> Definitions {
        let mut definitions = Definitions::default();
        let mut secrets = BTreeMap::new();
        for (path, file) in &self.files {
            definitions.unreadable.extend(file.problems.iter().cloned());
            let shown: Arc<str> = path.strip_prefix(&self.root).unwrap_or(path).display().to_string().into();
            for object in &file.objects {
                let (kind, id, taken) = match object {
                    Object::Api(id, api) => {
                        let taken = definitions.apis.contains_key(id);
                        definitions.apis.entry(id.clone()).or_insert_with(|| api.clone());
                        ("DoormanApi", id, taken)
                    }
                    Object::Role(id, role) => {
                        let taken = definitions.roles.contains_key(id);
                        definitions.roles.entry(id.clone()).or_insert_with(|| role.clone());
                        ("DoormanRole", id, taken)
                    }
                    Object::Secret(id, secret) => {
                        let taken = secrets.contains_key(id);
                        secrets.entry(id.clone()).or_insert_with(|| secret.clone());
                        ("Secret", id, taken)
                    }
                };
                if taken {
                    let message = format!("{shown}: another file already holds a {kind} of this name");
                    definitions.unreadable.push(rejection(kind, &id.1, &message));
                } else if let Some(uid) = object.uid() {
                    definitions.files.insert(uid.to_owned(), shown.clone());
                }
            }
        }
        definitions.secrets = Secrets::all(secrets);
        definitions
    }

    /// Follows the folder until the receiver is gone.
    pub async fn follow(mut self, publish: watch::Sender<Arc<Definitions>>) {
        let mut folder = Watch::new(&self.root, RecursiveMode::Recursive, "the manifests");
        loop {
            tokio::select! {
                () = publish.closed() => return,
                () = folder.changed() => {}
            }
            // With many files, calls on this thread would wait for it.
            let look = tokio::task::spawn_blocking(move || {
                let outcome = self.read();
                (self, outcome)
            });
            let Ok((directory, outcome)) = look.await else { return };
            self = directory;
            match outcome {
                Ok(Some(definitions)) => {
                    publish.send_replace(Arc::new(definitions));
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "definitions stay as they are"),
            }
        }
    }
}

fn list(folder: &Path, found: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // Editors' swap files and the `..data` links of mounted volumes.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            list(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            found.insert(path);
        }
    }
    Ok(())
}

fn rejection(kind: &str, name: &str, message: &str) -> Rejection {
    Rejection {
        kind: kind.to_owned(),
        namespace: String::new(),
        name: name.to_owned(),
        reason: "Unreadable".to_owned(),
        message: message.to_owned(),
    }
}

/// All documents of one file; `Err` when the text is no YAML.
fn parse(file: &str, text: &str) -> Result<(Vec<Object>, Vec<Rejection>), String> {
    let mut objects = Vec::new();
    let mut problems = Vec::new();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let value = serde_yaml::Value::deserialize(document).map_err(|error| format!("no valid YAML: {error}"))?;
        if value.is_null() {
            continue;
        }
        match object(file, value) {
            Ok(object) => objects.extend(object),
            Err(message) => {
                problems.push(rejection("Document", file, &format!("document {}: {message}", index + 1)));
            }
        }
    }
    Ok((objects, problems))
}

fn object(file: &str, value: serde_yaml::Value) -> Result<Option<Object>, String> {
    let text = |key: &str| value.get(key).and_then(serde_yaml::Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if (api_version.as_str(), kind.as_str()) == ("v1", "Secret") {
        // What is wrong with a value is not told, only where: it may be secret.
        let mut secret: k8s_openapi::api::core::v1::Secret = serde_path_to_error::deserialize(value)
            .map_err(|error| format!("{}: not as it is in a Secret", error.path()))?;
        let id = identify(file, &kind, &mut secret.metadata, 0)?;
        return Ok(Some(Object::Secret(id, Arc::new(secret.into()))));
    }
    if api_version != format!("{GROUP}/{}", doorman_crds::VERSION) {
        return Err(format!("apiVersion `{api_version}` is not {GROUP}/{}", doorman_crds::VERSION));
    }
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    // A folder has no API server to count generations: the content stands for it.
    let generation = i64::try_from(hasher.finish() >> 1).unwrap_or_default();
    match kind.as_str() {
        "DoormanApi" => {
            let mut api: DoormanApi = typed(value)?;
            admitted(&api)?;
            let id = identify(file, &kind, &mut api.metadata, generation)?;
            Ok(Some(Object::Api(id, Arc::new(api))))
        }
        "DoormanRole" => {
            let mut role: DoormanRole = typed(value)?;
            let id = identify(file, &kind, &mut role.metadata, generation)?;
            Ok(Some(Object::Role(id, Arc::new(role))))
        }
        // The same folder may be applied to a cluster; a gateway that runs alone has its settings elsewhere.
        "DoormanGateway" => {
            let gateway: DoormanGateway = typed(value)?;
            tracing::debug!(file, name = gateway.name_any(), "a DoormanGateway has no meaning in a folder");
            Ok(None)
        }
        other => Err(format!("kind `{other}` is not one of DoormanApi, DoormanRole, DoormanGateway")),
    }
}

/// Reads an object; the message names the field. One that is not known is a mistake, as it is to `kubectl`: what it was
/// meant to say would not be done.
fn typed<T: serde::de::DeserializeOwned>(value: serde_yaml::Value) -> Result<T, String> {
    let (mut track, mut unknown) = (serde_path_to_error::Track::new(), None);
    let source = serde_path_to_error::Deserializer::new(value, &mut track);
    let note = |path: serde_ignored::Path<'_>| {
        let path = path.to_string().replace(".?", "");
        // Which type it is was read before.
        if !matches!(path.as_str(), "apiVersion" | "kind") {
            unknown.get_or_insert(path);
        }
    };
    let read = serde_ignored::deserialize(source, note);
    let object = read.map_err(|error| format!("{}: {error}", track.path()))?;
    unknown.map_or(Ok(object), |field| Err(format!("{field}: there is no such field")))
}

/// Refuses what an API server would refuse and a gateway could serve. The document store may hold such APIs: it charges
/// nobody for them (reference: gateway behaviour 8).
fn admitted(api: &DoormanApi) -> Result<(), String> {
    let charges = api.spec.credits.as_ref().is_some_and(|credits| credits.enabled);
    if api.spec.public == Some(true) && charges {
        return Err("a public API can't charge credits: set spec.public or spec.credits.enabled to false".to_owned());
    }
    Ok(())
}

fn identify(
    file: &str,
    kind: &str,
    meta: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    generation: i64,
) -> Result<ObjectId, String> {
    let name = meta.name.clone().filter(|name| !name.is_empty()).ok_or("metadata.name is missing")?;
    let namespace = meta.namespace.clone().unwrap_or_default();
    meta.uid = Some(format!("{kind}/{file}/{namespace}/{name}"));
    meta.generation = Some(generation);
    Ok((namespace, name))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use doorman_crds::api::NoSecret;

    use super::*;

    const GOOD: &str = "apiVersion: doorman.dev/v1alpha1\nkind: DoormanApi\nmetadata: {name: NAME}\nspec: {name: NAME, version: v1, protocol: REST, public: true}\n";

    fn write(folder: &Path, file: &str, text: &str) {
        std::fs::write(folder.join(file), text).unwrap();
    }

    fn names(definitions: &Definitions) -> Vec<&str> {
        definitions.apis.keys().map(|(_, name)| name.as_str()).collect()
    }

    #[test]
    fn a_bad_document_leaves_its_neighbours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let text =
            format!("{}---\nkind: Pod\napiVersion: v1\n---\n{}", GOOD.replace("NAME", "a"), GOOD.replace("NAME", "b"));
        write(folder.path(), "many.yaml", &text);
        let definitions = Directory::new(folder.path()).read().unwrap().unwrap();
        assert_eq!(names(&definitions), ["a", "b"]);
        assert_eq!(definitions.files.values().map(|file| &**file).collect::<Vec<_>>(), ["many.yaml"; 2]);
        assert_eq!(definitions.unreadable.len(), 1);
        assert!(definitions.unreadable[0].message.contains("document 2"), "{:?}", definitions.unreadable);
    }

    #[test]
    fn a_wrong_field_is_named_in_the_rejection() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.yaml", &GOOD.replace("NAME", "a").replace("REST", "SMTP"));
        let definitions = Directory::new(folder.path()).read().unwrap().unwrap();
        assert!(definitions.unreadable[0].message.contains("protocol"), "{:?}", definitions.unreadable);
    }

    #[test]
    fn a_field_or_version_that_is_not_known_is_a_mistake() {
        let folder = tempfile::tempdir().unwrap();
        for (from, to, wanted) in [
            ("public: true", "pubic: true", "spec.pubic: there is no such field"),
            ("public: true", "access: {ips: {}}", "spec.access.ips: there is no such field"),
            (
                "public: true",
                "servers: [http://a], upstream: {retry: {}}",
                "spec.upstream.retry: there is no such field",
            ),
            ("public: true", "endpoints: [{method: GET, uri: /a, x: 1}]", "spec.endpoints.0.x: there is no such field"),
            ("v1alpha1", "v99", "apiVersion `doorman.dev/v99` is not doorman.dev/v1alpha1"),
        ] {
            write(folder.path(), "a.yaml", &GOOD.replace("NAME", "a").replace(from, to));
            let definitions = Directory::new(folder.path()).read().unwrap().unwrap();
            assert!(definitions.apis.is_empty() && definitions.unreadable.len() == 1, "{to}");
            assert!(definitions.unreadable[0].message.contains(wanted), "{:?}", definitions.unreadable);
        }
    }

    #[test]
    fn a_public_api_that_charges_is_refused_as_in_a_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let good = GOOD.replace("NAME", "b");
        for (change, is_refused) in [
            ("public: true, credits: {enabled: true, group: g}", true),
            ("public: true, credits: {enabled: false}", false),
            ("public: false, credits: {enabled: true, group: g}", false),
        ] {
            let text = GOOD.replace("NAME", "a").replace("public: true", change);
            write(folder.path(), "a.yaml", &format!("{text}---\n{good}"));
            let definitions = Directory::new(folder.path()).read().unwrap().unwrap();
            let wanted = if is_refused { vec!["b"] } else { vec!["a", "b"] };
            assert_eq!(names(&definitions), wanted, "{change}: {:?}", definitions.unreadable);
            let told = definitions.unreadable.first().map(|problem| &*problem.message);
            assert_eq!(told.is_some_and(|told| told.contains("can't charge credits")), is_refused, "{told:?}");
        }
    }

    #[test]
    fn a_secret_is_read_and_what_is_wrong_with_one_tells_nothing_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: NAME}\n";
        let good = format!("{secret}data: {{a: Yg==, c: ZA==}}\nstringData: {{c: e}}\n").replace("NAME", "good");
        let bad = format!("{secret}data: {{a: geheim!}}\n").replace("NAME", "bad");
        let odd = format!("{secret}stringData: geheim\n").replace("NAME", "odd");
        write(folder.path(), "a.yaml", &format!("{good}---\n{bad}---\n{odd}"));
        let definitions = Directory::new(folder.path()).read().unwrap().unwrap();
        let find = |name: &str| definitions.secrets.get("", name);
        let good = find("good").unwrap();
        assert_eq!((good.get("a"), good.get("c")), (Some(&b"b"[..]), Some(&b"e"[..])));
        assert_eq!((find("bad"), find("odd")), (Err(&NoSecret::NotFound), Err(&NoSecret::NotFound)));
        assert_eq!(definitions.unreadable.len(), 2);
        assert!(!format!("{definitions:?}").contains("geheim"), "{definitions:?}");
    }

    #[test]
    fn a_broken_edit_keeps_what_the_file_held() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.yaml", &GOOD.replace("NAME", "a"));
        let mut directory = Directory::new(folder.path());
        directory.read().unwrap();
        assert_eq!(directory.read().unwrap(), None);
        write(folder.path(), "a.yaml", "apiVersion: [");
        let definitions = directory.read().unwrap().unwrap();
        assert_eq!(names(&definitions), ["a"]);
        assert!(definitions.unreadable[0].message.contains("stays served"));
        write(folder.path(), "a.yaml", &GOOD.replace("NAME", "b"));
        let definitions = directory.read().unwrap().unwrap();
        assert_eq!((names(&definitions), definitions.unreadable.len()), (vec!["b"], 0));
        std::fs::remove_file(folder.path().join("a.yaml")).unwrap();
        assert_eq!(names(&directory.read().unwrap().unwrap()), Vec::<&str>::new());
    }

    #[tokio::test]
    async fn changes_are_published_while_following() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = Directory::new(folder.path());
        let first = directory.read().unwrap().unwrap_or_default();
        let (publish, mut states) = watch::channel(Arc::new(first));
        let follower = tokio::spawn(directory.follow(publish));
        write(folder.path(), "a.yaml", &GOOD.replace("NAME", "a"));
        let seen = states.wait_for(|state| names(state) == ["a"]);
        tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap().unwrap();
        drop(states);
        tokio::time::timeout(Duration::from_secs(20), follower).await.unwrap().unwrap();
    }
}
