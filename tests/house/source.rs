//! The files of `src/` as modules: what each imports, names and makes visible. Tests inside them
//! are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree, Visibility};

/// A module's path from the crate's root.
pub(crate) type ModulePath = Vec<String>;

/// All modules that are files.
pub(crate) struct Tree {
    sources: BTreeMap<ModulePath, Source>,
}

/// One file.
pub(crate) struct Source {
    /// Its path from the project's root.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    pub(crate) module: ModulePath,
    imports: BTreeMap<String, Import>,
    globs: Vec<Import>,
    children: BTreeSet<String>,
    mentions: Vec<Mention>,
    items: Vec<VisibleItem>,
}

/// One name that a `use` brings in.
#[derive(Clone)]
pub(crate) struct Import {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    /// Whether it only hands the name on to others.
    pub(crate) is_reexport: bool,
}

/// A path as it stands somewhere in the code.
pub(crate) struct Mention {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

/// An item that other files can see.
pub(crate) struct VisibleItem {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) is_documented: bool,
    /// Whether it is a type or a constant, which has its name for itself.
    pub(crate) is_named: bool,
}

/// The project's root.
pub(crate) fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into())
        .into()
}

/// A path from the project's root.
pub(crate) fn relative(path: &Path) -> PathBuf {
    path.strip_prefix(root()).unwrap().to_owned()
}

/// All Rust files below a folder, without what cargo has built there.
pub(crate) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

impl Tree {
    /// Reads all files below `src`.
    pub(crate) fn read(src: &Path) -> Tree {
        let sources = rust_files(src).into_iter().map(|path| {
            let source = Source::read(&path, module_path(path.strip_prefix(src).unwrap()));
            (source.module.clone(), source)
        });
        let mut sources: BTreeMap<ModulePath, Source> = sources.collect();
        let of_tests: Vec<ModulePath> = sources
            .keys()
            .filter(|module| is_of_tests(&sources, module))
            .cloned()
            .collect();
        for module in of_tests {
            sources.remove(&module);
        }
        Tree { sources }
    }

    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.values()
    }

    pub(crate) fn get(&self, module: &[String]) -> Option<&Source> {
        self.sources.get(module)
    }
}

/// Whether a module, or one around it, is not declared outside tests.
fn is_of_tests(sources: &BTreeMap<ModulePath, Source>, module: &[String]) -> bool {
    (1..=module.len()).any(|length| {
        let (name, parent) = module[..length].split_last().unwrap();
        let parent = sources.get(parent);
        parent.is_some_and(|parent| !parent.children.contains(name))
    }) && module[0] != "bin"
}

fn module_path(path: &Path) -> ModulePath {
    let path = path.with_extension("");
    let parts = path.iter().map(|part| part.to_str().unwrap().to_owned());
    parts.filter(|part| part != "lib").collect()
}

impl Source {
    fn read(path: &Path, module: ModulePath) -> Source {
        let text = std::fs::read_to_string(path).unwrap();
        let file = syn::parse_file(&text).unwrap();
        let mut source = Source {
            path: relative(path),
            text,
            module,
            imports: BTreeMap::new(),
            globs: Vec::new(),
            children: BTreeSet::new(),
            mentions: Vec::new(),
            items: Vec::new(),
        };
        source.visit_file(&file);
        source
    }

    pub(crate) fn imports(&self) -> impl Iterator<Item = &Import> {
        self.imports.values().chain(&self.globs)
    }

    /// What a name that stands in this file was imported as.
    pub(crate) fn import(&self, name: &str) -> Option<&Import> {
        self.imports.get(name)
    }

    pub(crate) fn globs(&self) -> &[Import] {
        &self.globs
    }

    pub(crate) fn has_child(&self, name: &str) -> bool {
        self.children.contains(name)
    }

    pub(crate) fn mentions(&self) -> &[Mention] {
        &self.mentions
    }

    pub(crate) fn items(&self) -> &[VisibleItem] {
        &self.items
    }

    fn import_tree(&mut self, tree: &UseTree, before: &[String], is_reexport: bool) {
        let with = |name: String| [before, &[name]].concat();
        let import = |path, line| Import {
            path,
            line,
            is_reexport,
        };
        match tree {
            UseTree::Path(path) => {
                self.import_tree(&path.tree, &with(path.ident.to_string()), is_reexport);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import_tree(tree, before, is_reexport);
                }
            }
            UseTree::Name(name) => {
                let line = name.span().start().line;
                if name.ident == "self" {
                    let known_as = before.last().unwrap().clone();
                    self.imports.insert(known_as, import(before.to_vec(), line));
                } else {
                    let name = name.ident.to_string();
                    let path = with(name.clone());
                    self.imports.insert(name, import(path, line));
                }
            }
            UseTree::Rename(rename) => {
                let line = rename.span().start().line;
                let path = with(rename.ident.to_string());
                self.imports
                    .insert(rename.rename.to_string(), import(path, line));
            }
            UseTree::Glob(glob) => {
                let line = glob.span().start().line;
                self.globs.push(import(before.to_vec(), line));
            }
        }
    }

    fn note(&mut self, name: String, span: proc_macro2::Span, item: &Shown<'_>, is_named: bool) {
        if matches!(item.visibility, Visibility::Inherited) {
            return;
        }
        let documented = |attribute: &Attribute| attribute.path().is_ident("doc");
        self.items.push(VisibleItem {
            name,
            line: span.start().line,
            is_documented: item.attributes.iter().any(documented),
            is_named,
        });
    }

    /// Finds the paths in what a macro is given.
    fn scan(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.mention(std::mem::take(&mut path), line);
                    }
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                    colons = 0;
                }
                other => {
                    self.mention(std::mem::take(&mut path), line);
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.scan(group.stream());
                    }
                }
            }
        }
        self.mention(path, line);
    }

    fn mention(&mut self, path: Vec<String>, line: usize) {
        // `pub(crate)` and `self` name nothing.
        let keywords = ["crate", "self", "super"];
        let is_keyword = matches!(&path[..], [only] if keywords.contains(&only.as_str()));
        if !path.is_empty() && !is_keyword {
            self.mentions.push(Mention { path, line });
        }
    }
}

/// What is looked at of an item that others may see.
struct Shown<'a> {
    visibility: &'a Visibility,
    attributes: &'a [Attribute],
}

fn is_of_a_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|condition| condition.is_ident("test"))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Source {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_of_a_test(attributes(item)) {
            return;
        }
        let shown = |visibility| Shown {
            visibility,
            attributes: attributes(item),
        };
        match item {
            Item::Const(it) => self.note(it.ident.to_string(), it.span(), &shown(&it.vis), true),
            Item::Enum(it) => self.note(it.ident.to_string(), it.span(), &shown(&it.vis), true),
            Item::Fn(it) => self.note(it.sig.ident.to_string(), it.span(), &shown(&it.vis), false),
            Item::Static(it) => self.note(it.ident.to_string(), it.span(), &shown(&it.vis), true),
            Item::Struct(it) => self.note(it.ident.to_string(), it.span(), &shown(&it.vis), true),
            Item::Trait(it) => self.note(it.ident.to_string(), it.span(), &shown(&it.vis), true),
            Item::Type(it) => self.note(it.ident.to_string(), it.span(), &shown(&it.vis), true),
            Item::Mod(it) if it.content.is_none() => {
                self.children.insert(it.ident.to_string());
            }
            Item::Use(it) => {
                let is_reexport = !matches!(it.vis, Visibility::Inherited);
                self.import_tree(&it.tree, &[], is_reexport);
            }
            _ => {}
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Fn(it) => &it.attrs,
            syn::ImplItem::Const(it) => &it.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if is_of_a_test(attributes) {
            return;
        }
        let (name, visibility) = match item {
            syn::ImplItem::Fn(it) => (&it.sig.ident, &it.vis),
            syn::ImplItem::Const(it) => (&it.ident, &it.vis),
            _ => unreachable!("looked at above"),
        };
        let shown = Shown {
            visibility,
            attributes,
        };
        self.note(name.to_string(), item.span(), &shown, false);
        visit::visit_impl_item(self, item);
    }

    fn visit_item_use(&mut self, _: &'ast syn::ItemUse) {}

    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter();
        let names = segments.map(|segment| segment.ident.to_string()).collect();
        self.mention(names, path.span().start().line);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, it: &'ast syn::Macro) {
        self.scan(it.tokens.clone());
        visit::visit_macro(self, it);
    }
}
