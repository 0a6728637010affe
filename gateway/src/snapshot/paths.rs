//! The endpoints of one API as a tree over path segments: a literal beats a parameter, with backtracking.
//!
//! There may be many APIs, and a call to one that was not called lately finds nothing of it in a cache: so all of it is
//! small, and what a look-up needs lies close together.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;

use doorman_crds::api::{Endpoint, Method, Validation, WeightedServer};
use doorman_crds::path::{PathTemplate, Segment};

use super::{CompiledApi, Servers};
use crate::accounting::EndpointName;
use crate::request::push_segment;

/// The endpoints of one API.
#[derive(Debug, Default)]
pub struct Paths {
    /// The first is where paths begin.
    nodes: Box<[Node]>,
    /// Those of one node lie together, in the order of their texts.
    literals: Box<[Literal]>,
    /// What the literals are parts of.
    text: Box<str>,
    /// Those of one node lie together.
    targets: Box<[Target]>,
}

#[derive(Debug)]
struct Node {
    literals: Range<u32>,
    /// The node behind any one segment.
    parameter: Option<NonZeroU32>,
    targets: Range<u32>,
}

/// A segment and the node behind it.
#[derive(Debug)]
struct Literal {
    text: Range<u32>,
    node: u32,
}

/// The same in the making.
#[derive(Debug, Default)]
struct Tree {
    literals: BTreeMap<String, Tree>,
    parameter: Option<Box<Tree>>,
    targets: Vec<Target>,
}

fn part<'a, T>(all: &'a [T], range: &Range<u32>) -> &'a [T] {
    all.get(range.start as usize..range.end as usize).unwrap_or_default()
}

/// What a matched call turns into.
#[derive(Debug)]
struct Target {
    /// `GET orders/v1/items/{id}`.
    label: Arc<str>,
    method: Method,
    client_path: PathTemplate,
    /// Own servers; `None`: the API's.
    servers: Option<Box<Servers>>,
    validation: Option<Arc<Validation>>,
    /// `None`: the client's.
    path: Option<Box<UpstreamPath>>,
}

/// How the upstream's path is made.
#[derive(Debug)]
struct UpstreamPath {
    /// The path but for its parameters, encoded.
    text: Box<str>,
    /// Where the call's segments go in, and their indexes.
    captured: Box<[(u32, u32)]>,
}

/// An endpoint that answers a call.
#[derive(Clone, Copy, Debug)]
pub struct Match<'a>(&'a Target);

impl Paths {
    pub(super) fn compile(
        api: &str,
        endpoints: Vec<Endpoint>,
        mut servers: impl FnMut(&[WeightedServer]) -> Servers,
    ) -> Self {
        let mut root = Tree::default();
        for endpoint in endpoints {
            let mut tree = &mut root;
            for segment in endpoint.client_path.segments() {
                tree = match segment {
                    Segment::Literal(text) => tree.literals.entry(text.to_owned()).or_default(),
                    Segment::Parameter(_) => tree.parameter.get_or_insert_default(),
                };
            }
            let (client, upstream) = (&endpoint.client_path, &endpoint.upstream_path);
            tree.targets.push(Target {
                label: format!("{} {api}{client}", endpoint.method.as_str()).into(),
                method: endpoint.method,
                servers: endpoint.servers.map(|own| servers(&own)).filter(|own| !own.is_empty()).map(Box::new),
                path: (client != upstream).then(|| Box::new(UpstreamPath::compile(client, upstream))),
                client_path: endpoint.client_path,
                validation: endpoint.validation,
            });
        }
        let mut laid = Laid::default();
        laid.lay(root);
        Self {
            nodes: laid.nodes.into(),
            literals: laid.literals.into(),
            text: laid.text.into(),
            targets: laid.targets.into(),
        }
    }

    /// Does any method have an endpoint for these segments?
    pub fn has(&self, segments: &[Cow<'_, str>]) -> bool {
        const ALL: [Method; 6] = [Method::Get, Method::Post, Method::Put, Method::Patch, Method::Delete, Method::Head];
        ALL.into_iter().any(|method| self.find(method, segments).is_some())
    }

    /// The endpoint for a method and decoded segments.
    pub fn find(&self, method: Method, segments: &[Cow<'_, str>]) -> Option<Match<'_>> {
        self.below(0, method, segments).map(Match)
    }

    fn below(&self, node: u32, method: Method, segments: &[Cow<'_, str>]) -> Option<&Target> {
        let node = self.nodes.get(node as usize)?;
        let Some((first, rest)) = segments.split_first() else {
            return part(&self.targets, &node.targets).iter().find(|target| target.method == method);
        };
        let literals = part(&self.literals, &node.literals);
        let text = |of: &Range<u32>| self.text.get(of.start as usize..of.end as usize).unwrap_or_default();
        let place = literals.binary_search_by(|literal| text(&literal.text).cmp(first));
        let literal = place.ok().and_then(|place| self.below(literals[place].node, method, rest));
        literal.or_else(|| self.below(node.parameter?.get(), method, rest))
    }
}

/// Trees in their final form, in which children come after their parents.
#[derive(Debug, Default)]
struct Laid {
    nodes: Vec<Node>,
    literals: Vec<Literal>,
    text: String,
    targets: Vec<Target>,
}

impl Laid {
    /// The number of the tree's first node.
    fn lay(&mut self, tree: Tree) -> u32 {
        let number = self.nodes.len();
        let targets = self.targets.len() as u32;
        self.targets.extend(tree.targets);
        let literals = self.literals.len();
        for text in tree.literals.keys() {
            let start = self.text.len() as u32;
            self.text.push_str(text);
            self.literals.push(Literal { text: start..self.text.len() as u32, node: 0 });
        }
        let of_node = literals as u32..self.literals.len() as u32;
        let targets = targets..self.targets.len() as u32;
        self.nodes.push(Node { literals: of_node, parameter: None, targets });
        for (place, tree) in (literals..).zip(tree.literals.into_values()) {
            self.literals[place].node = self.lay(tree);
        }
        self.nodes[number].parameter = tree.parameter.and_then(|tree| NonZeroU32::new(self.lay(*tree)));
        number as u32
    }
}

impl UpstreamPath {
    fn compile(client: &PathTemplate, upstream: &PathTemplate) -> Self {
        let (mut text, mut captured) = (String::new(), Vec::new());
        for segment in upstream.segments() {
            if let Segment::Literal(literal) = segment {
                push_segment(&mut text, literal);
                continue;
            }
            // Always found: the parse takes no parameter that is not one of the client's.
            if let Some(index) = (0..).zip(client.segments()).find_map(|(index, own)| (own == segment).then_some(index))
            {
                captured.push((u32::try_from(text.len()).unwrap_or(u32::MAX), index));
            }
        }
        if text.is_empty() && captured.is_empty() {
            text.push('/');
        }
        Self { text: text.into(), captured: captured.into() }
    }

    fn write(&self, segments: &[Cow<'_, str>], out: &mut String) {
        let mut written = 0;
        for (at, index) in &self.captured {
            let at = *at as usize;
            out.push_str(self.text.get(written..at).unwrap_or_default());
            push_segment(out, segments.get(*index as usize).map_or("", AsRef::as_ref));
            written = at;
        }
        out.push_str(self.text.get(written..).unwrap_or_default());
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

    /// Own servers, if there are any that take turns.
    pub fn servers(self) -> Option<&'a Servers> {
        self.0.servers.as_deref()
    }

    /// What bodies must be like.
    pub fn validation(self) -> Option<&'a Validation> {
        self.0.validation.as_deref()
    }

    /// Appends the upstream's path for a call with these segments.
    pub fn write_path(self, segments: &[Cow<'_, str>], out: &mut String) {
        match &self.0.path {
            Some(path) => path.write(segments, out),
            None if segments.is_empty() => out.push('/'),
            None => segments.iter().for_each(|segment| push_segment(out, segment)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(method: Method, path: &str, upstream: &str) -> Endpoint {
        let [client_path, upstream_path] = [path, upstream].map(|text| PathTemplate::parse(text).unwrap());
        Endpoint { method, client_path, upstream_path, servers: None, validation: None }
    }

    fn compile(endpoints: Vec<Endpoint>) -> Paths {
        Paths::compile("a/v1", endpoints, |_| unreachable!("none has servers of its own"))
    }

    const METHODS: [Method; 2] = [Method::Get, Method::Put];

    fn declared() -> impl Strategy<Value = (usize, String)> {
        let segment = prop::sample::select(vec!["a", "b", "bb", "{x}"]);
        let path = prop::collection::vec(segment, 0..4).prop_map(|segments| {
            let named = segments.iter().enumerate().map(|(place, segment)| segment.replace('x', &format!("x{place}")));
            format!("/{}", named.collect::<Vec<_>>().join("/"))
        });
        (0..METHODS.len(), path)
    }

    proptest! {
        /// Of all of a method that match, the one that has a literal where the other has a parameter, the first such place
        /// deciding.
        #[test]
        fn a_literal_beats_a_parameter(
            declared in prop::collection::btree_set(declared(), 0..24),
            called in prop::collection::vec(prop::sample::select(vec!["a", "b", "bb", "c"]), 0..4),
        ) {
            let compiled =
                compile(declared.iter().map(|(method, path)| endpoint(METHODS[*method], path, path)).collect());
            let segments: Vec<_> = called.iter().map(|segment| Cow::Borrowed(*segment)).collect();
            let matches = |path: &str| {
                let own: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
                own.len() == called.len() && own.iter().zip(&called).all(|(own, one)| own.starts_with('{') || own == one)
            };
            let parameters = |path: &&str| path.split('/').map(|part| part.starts_with('{')).collect::<Vec<_>>();
            let mut has = false;
            for (number, method) in METHODS.into_iter().enumerate() {
                let of_method = declared.iter().filter(|(own, _)| *own == number).map(|(_, path)| path.as_str());
                let expected = of_method.filter(|path| matches(path)).min_by_key(parameters);
                let found = compiled.find(method, &segments).map(|found| found.client_path().to_string());
                prop_assert_eq!(found.as_deref(), expected);
                has |= expected.is_some();
            }
            prop_assert_eq!(compiled.has(&segments), has);
        }
    }

    #[test]
    fn the_upstreams_path_has_the_segments_of_the_call() {
        let segments = ["ä", "a b", "%"].map(Cow::Borrowed);
        for (client, upstream, written) in [
            ("/ä/{x}/{y}", "/ä/{x}/{y}", "/%C3%A4/a%20b/%25"),
            ("/{z}/{x}/{y}", "/{y}/ö/{x}", "/%25/%C3%B6/a%20b"),
            ("/{z}/{x}/{y}", "/fixed", "/fixed"),
            ("/{z}/{x}/{y}", "/", "/"),
        ] {
            let compiled = compile(vec![endpoint(Method::Get, client, upstream)]);
            let mut out = String::new();
            compiled.find(Method::Get, &segments).unwrap().write_path(&segments, &mut out);
            assert_eq!(out, written, "{client} {upstream}");
        }
        let root = compile(vec![endpoint(Method::Get, "/", "/")]);
        let mut out = String::new();
        root.find(Method::Get, &[]).unwrap().write_path(&[], &mut out);
        assert_eq!(out, "/");
    }
}
