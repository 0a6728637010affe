//! Prints the three CustomResourceDefinitions as one YAML stream, or writes one file each into the folder given.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(std::env::args_os().nth(1).map(PathBuf::from)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("doorman-crds: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(folder: Option<PathBuf>) -> Result<(), Box<dyn std::error::Error>> {
    for (name, text) in doorman_crds::manifests::render()? {
        match &folder {
            Some(folder) => std::fs::write(folder.join(&name), text).map_err(|error| format!("{name}: {error}"))?,
            None => print!("---\n{text}"),
        }
    }
    Ok(())
}
