//! Prints the three CustomResourceDefinitions as one YAML stream, or writes one file each into the folders given.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(&std::env::args_os().skip(1).map(PathBuf::from).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("doorman-crds: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(folders: &[PathBuf]) -> Result<(), Box<dyn std::error::Error>> {
    for (name, text) in doorman_crds::manifests::render()? {
        if folders.is_empty() {
            print!("---\n{text}");
        }
        for path in folders.iter().map(|folder| folder.join(&name)) {
            std::fs::write(&path, &text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}
