//! The guide and the repository agree: every chapter is listed, every listed file and every named path exists.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

/// Targets of Markdown links that are not on the web.
fn links(text: &str) -> BTreeSet<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|t| !t.starts_with("http") && !t.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn every_chapter_is_in_the_summary() {
    let listed = links(&read("docs/src/SUMMARY.md"));
    let files: BTreeSet<String> = std::fs::read_dir(Path::new(ROOT).join("docs/src"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md") && name != "SUMMARY.md")
        .collect();
    assert_eq!(listed, files);
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    let pages = std::fs::read_dir(Path::new(ROOT).join("docs/src")).unwrap();
    let mut pages: Vec<String> =
        pages.map(|e| format!("docs/src/{}", e.unwrap().file_name().into_string().unwrap())).collect();
    pages.extend(["README.md".to_owned(), "CONTRIBUTING.md".to_owned(), "CHANGELOG.md".to_owned()]);
    for page in pages {
        let folder = Path::new(ROOT).join(&page).parent().unwrap().to_owned();
        for link in links(&read(&page)) {
            let file = link.split('#').next().unwrap();
            assert!(folder.join(file).exists(), "{page} links to {link}, which does not exist");
            checked += 1;
        }
    }
    assert!(checked >= 15, "only {checked} links were found");
}

#[test]
fn paths_of_the_architecture_page_exist() {
    let page = read("docs/src/architecture.md");
    let paths = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|p| p.starts_with("src/") || p.starts_with("weights/") || p.starts_with("codegen/"));
    let paths: Vec<&str> = paths.collect();
    assert!(paths.len() > 12, "only {paths:?}");
    for path in paths {
        assert!(Path::new(ROOT).join(path).exists(), "the architecture page names {path}, which does not exist");
    }
}

/// The README's example is what a newcomer copies first.
#[test]
fn the_example_of_the_readme_is_the_one_that_is_compiled() {
    let readme = read("README.md");
    let example = readme.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    let program = read("examples/generate.rs");
    let (_, program) = program.split_once("\n\n").unwrap(); // its documentation and lint setting
    assert_eq!(example, program, "README and examples/generate.rs differ");
}
