//! The endpoints of one API as a tree over path segments: a literal beats a parameter, with backtracking.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use doorman_crds::api::{Endpoint, Method, Validation, WeightedServer};
use doorman_crds::path::{PathTemplate, Segment};
use smallvec::SmallVec;

use super::{CompiledApi, Servers};
use crate::accounting::EndpointName;
use crate::request::push_segment;

/// The endpoints of one API.
#[derive(Debug, Default)]
pub struct Paths {
    root: Node,
    targets: Vec<Target>,
}

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Node>,
    parameter: Option<Box<Node>>,
    methods: SmallVec<[(Method, usize); 2]>,
}

/// What a matched call turns into.
#[derive(Debug)]
pub struct Target {
    /// `GET orders/v1/items/{id}`.
    label: Arc<str>,
    method: Method,
    client_path: PathTemplate,
    /// Own servers; empty means the API's.
    pub servers: Servers,
    validation: Option<Arc<Validation>>,
    path: UpstreamPath,
}

/// How the upstream's path is made.
#[derive(Debug)]
enum UpstreamPath {
    /// No parameters: always this.
    Fixed(Box<str>),
    /// From the segments of the call.
    Template(Vec<Piece>),
}

#[derive(Debug)]
enum Piece {
    Literal(Box<str>),
    /// The call's segment at this index.
    Captured(usize),
}

/// An endpoint that answers a call.
#[derive(Clone, Copy, Debug)]
pub struct Match<'a>(&'a Target);

impl Paths {
    pub(super) fn compile(api: &str, endpoints: &[Endpoint], servers: impl Fn(&[WeightedServer]) -> Servers) -> Self {
        let mut paths = Self::default();
        for endpoint in endpoints {
            let index = paths.targets.len();
            paths.targets.push(Target {
                label: format!("{} {api}{}", endpoint.method.as_str(), endpoint.client_path).into(),
                method: endpoint.method,
                client_path: endpoint.client_path.clone(),
                servers: servers(endpoint.servers.as_deref().unwrap_or_default()),
                validation: endpoint.validation.clone(),
                path: UpstreamPath::compile(&endpoint.client_path, &endpoint.upstream_path),
            });
            let mut node = &mut paths.root;
            for segment in endpoint.client_path.segments() {
                node = match segment {
                    Segment::Literal(text) => node.literals.entry(text.as_str().into()).or_default(),
                    Segment::Parameter(_) => node.parameter.get_or_insert_default(),
                };
            }
            node.methods.push((endpoint.method, index));
        }
        paths
    }

    /// Does any method have an endpoint for these segments?
    pub fn has(&self, segments: &[Cow<'_, str>]) -> bool {
        const ALL: [Method; 6] = [Method::Get, Method::Post, Method::Put, Method::Patch, Method::Delete, Method::Head];
        ALL.into_iter().any(|method| self.find(method, segments).is_some())
    }

    /// The endpoint for a method and decoded segments.
    pub fn find(&self, method: Method, segments: &[Cow<'_, str>]) -> Option<Match<'_>> {
        let index = self.root.find(method, segments)?;
        self.targets.get(index).map(Match)
    }
}

impl Node {
    fn find(&self, method: Method, segments: &[Cow<'_, str>]) -> Option<usize> {
        let Some((first, rest)) = segments.split_first() else {
            return self.methods.iter().find(|(m, _)| *m == method).map(|(_, index)| *index);
        };
        let literal = self.literals.get(first.as_ref()).and_then(|node| node.find(method, rest));
        literal.or_else(|| self.parameter.as_ref().and_then(|node| node.find(method, rest)))
    }
}

impl UpstreamPath {
    fn compile(client: &PathTemplate, upstream: &PathTemplate) -> Self {
        let mut pieces = Vec::new();
        for segment in upstream.segments() {
            pieces.push(match segment {
                Segment::Literal(text) => {
                    let mut encoded = String::new();
                    push_segment(&mut encoded, text);
                    Piece::Literal(encoded.into())
                }
                Segment::Parameter(name) => {
                    let is_it = |s: &Segment| matches!(s, Segment::Parameter(n) if n == name);
                    match client.segments().iter().position(is_it) {
                        Some(index) => Piece::Captured(index),
                        // Ruled out by the parse: every upstream parameter is one of the client's.
                        None => Piece::Literal("".into()),
                    }
                }
            });
        }
        if pieces.iter().any(|piece| matches!(piece, Piece::Captured(_))) {
            return Self::Template(pieces);
        }
        let fixed: String =
            pieces.iter().map(|piece| if let Piece::Literal(text) = piece { text } else { "" }).collect();
        Self::Fixed(if fixed.is_empty() { "/".into() } else { fixed.into() })
    }
}

impl<'a> Match<'a> {
    /// The path that clients call.
    pub fn client_path(self) -> &'a PathTemplate {
        &self.0.client_path
    }

    /// Method, API and path, as counts and logs show it.
    pub fn label(self) -> &'a Arc<str> {
        &self.0.label
    }

    /// What rules call it, among the endpoints of this API.
    pub fn name(self, api: &'a CompiledApi) -> EndpointName<'a> {
        EndpointName { method: self.0.method.as_str(), api: &api.label, path: self.client_path() }
    }

    /// Own servers; empty means the API's.
    pub fn servers(self) -> &'a Servers {
        &self.0.servers
    }

    /// What bodies must be like.
    pub fn validation(self) -> Option<&'a Validation> {
        self.0.validation.as_deref()
    }

    /// Appends the upstream's path for a call with these segments.
    pub fn write_path(self, segments: &[Cow<'_, str>], out: &mut String) {
        match &self.0.path {
            UpstreamPath::Fixed(path) => out.push_str(path),
            UpstreamPath::Template(pieces) => {
                for piece in pieces {
                    match piece {
                        Piece::Literal(text) => out.push_str(text),
                        Piece::Captured(index) => push_segment(out, segments.get(*index).map_or("", AsRef::as_ref)),
                    }
                }
            }
        }
    }
}
