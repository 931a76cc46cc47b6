use super::*;
use proptest::prelude::*;
use safetensors::SafeTensors;

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

fn no_metadata() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// Names of all directory entries, temporary ones included.
fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

proptest! {
    #[test]
    fn whatever_is_written_reads_back_aligned(
        tensors in proptest::collection::vec((0..3usize, proptest::collection::vec(0..5usize, 0..4)), 0..8),
        order in any::<u64>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.safetensors");
        let specs: Vec<TensorSpec> = tensors
            .iter()
            .enumerate()
            .map(|(i, (d, shape))| spec(&format!("t{i}"), DType::FLOATS[*d], shape))
            .collect();
        let data: Vec<Vec<u8>> =
            specs.iter().enumerate().map(|(i, s)| vec![i as u8 + 1; s.byte_len().unwrap()]).collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut writer = SafetensorsWriter::create(&path, &specs, &metadata).unwrap();
        let file_len = writer.file_len();
        let mut indices: Vec<usize> = (0..specs.len()).collect();
        indices.sort_by_key(|&i| (order.rotate_left(7 * i as u32), i));
        for i in indices {
            let (a, b) = data[i].split_at(data[i].len() / 2);
            if order % 2 == 0 {
                writer.write(&specs[i].name, &data[i]).unwrap();
            } else {
                writer.append(&specs[i].name, a).unwrap();
                writer.append(&specs[i].name, b).unwrap();
            }
        }
        writer.finish().unwrap();

        let bytes = fs::read(&path).unwrap();
        prop_assert_eq!(bytes.len() as u64, file_len);
        let (head, meta) = SafeTensors::read_metadata(&bytes).unwrap();
        prop_assert_eq!((head + 8) % DATA_ALIGNMENT, 0);
        prop_assert_eq!(meta.metadata().as_ref().unwrap()["format"].as_str(), "pt");
        let read = SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(read.len(), specs.len());
        for (s, d) in specs.iter().zip(&data) {
            let t = read.tensor(&s.name).unwrap();
            prop_assert_eq!(t.shape(), &s.shape[..]);
            prop_assert_eq!(t.data(), &d[..]);
            prop_assert_eq!(meta.info(&s.name).unwrap().data_offsets.0 % s.dtype.size(), 0);
        }
        prop_assert_eq!(entries(directory.path()), ["m.safetensors"]);
    }
}

#[test]
fn wrong_use_is_reported_and_leaves_the_old_file() {
    struct Case {
        act: fn(&mut SafetensorsWriter) -> Result<()>,
        message: &'static str,
    }
    let cases = [
        Case {
            act: |w| w.write("nope", &[]),
            message: "tensor \"nope\" was not declared when PATH was begun; declare every tensor of a file before the first write",
        },
        Case { act: |w| w.write("a", &[0; 7]), message: "tensor \"a\" of PATH takes 8 bytes, but was given 7" },
        Case {
            act: |w| {
                w.write("a", &[0; 8])?;
                w.write("a", &[0; 8])
            },
            message: "tensor \"a\" of PATH takes 8 bytes, but was given 16",
        },
        Case {
            act: |w| {
                w.append("a", &[0; 6])?;
                w.append("a", &[0; 3])
            },
            message: "tensor \"a\" of PATH takes 8 bytes, but was given 9",
        },
    ];
    for case in cases {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.safetensors");
        fs::write(&path, "old").unwrap();
        let mut writer = SafetensorsWriter::create(&path, &[spec("a", DType::F32, &[2])], &no_metadata()).unwrap();
        let error = (case.act)(&mut writer).unwrap_err();
        assert_eq!(error.to_string().replace(&path.display().to_string(), "PATH"), case.message);
        drop(writer);
        assert_eq!(entries(directory.path()), ["m.safetensors"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}

#[test]
fn an_incomplete_file_is_not_finished() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.safetensors");
    let specs = [spec("a", DType::F16, &[2]), spec("b", DType::F16, &[3])];
    let mut writer = SafetensorsWriter::create(&path, &specs, &no_metadata()).unwrap();
    writer.write("a", &[0; 4]).unwrap();
    writer.append("b", &[0; 4]).unwrap();
    let error = writer.finish().unwrap_err().to_string().replace(&path.display().to_string(), "PATH");
    assert_eq!(error, "tensor \"b\" of PATH takes 6 bytes, but was given 4");
    assert_eq!(entries(directory.path()), [""; 0]);
}

#[test]
fn declarations_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.safetensors");
    let twice = [spec("a", DType::F16, &[2]), spec("a", DType::F32, &[3])];
    let error = SafetensorsWriter::create(&path, &twice, &no_metadata()).unwrap_err();
    assert_eq!(
        error.to_string().replace(&path.display().to_string(), "PATH"),
        "tensor \"a\" occurs twice in PATH; a name stands for one tensor"
    );
    let absurd = [spec("a", DType::F16, &[usize::MAX, 2])];
    let error = SafetensorsWriter::create(&path, &absurd, &no_metadata()).unwrap_err();
    assert!(matches!(error, Error::TensorSize { expected: usize::MAX, .. }));
    assert_eq!(entries(directory.path()), [""; 0]);
}

#[test]
fn a_missing_directory_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("absent").join("m.safetensors");
    let error = SafetensorsWriter::create(&path, &[spec("a", DType::F32, &[2])], &no_metadata()).unwrap_err();
    assert!(error.to_string().contains("No such file or directory"), "{error}");
    assert!(write_atomic(&path, b"x").is_err());
}

#[cfg(unix)]
#[test]
fn devices_pipes_and_directories_are_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    for path in [link.as_path(), directory.path()] {
        let specs = [spec("a", DType::F32, &[2])];
        let error = SafetensorsWriter::create(path, &specs, &no_metadata()).unwrap_err().to_string();
        assert_eq!(error, format!("{} is not a regular file", path.display()));
        assert_eq!(write_atomic(path, b"x").unwrap_err().to_string(), error);
    }
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(entries(directory.path()), ["link"]);
}

#[test]
fn small_files_are_replaced_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    write_atomic(&path, b"one").unwrap();
    write_atomic(&path, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(entries(directory.path()), ["config.json"]);
}

/// `/dev/full` refuses every write with the error of a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported_with_the_bytes_needed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.safetensors");
    fs::write(&path, "old").unwrap();
    let specs = [spec("a", DType::F32, &[1000])];
    let message = |error: Error| error.to_string().replace(&path.display().to_string(), "PATH");
    let expected = "cannot write PATH: No space left on device (os error 28); the whole file takes 4128 bytes; \
                    nothing was replaced";

    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let temporary = Temporary::beside(&path);
    fs::write(temporary.path(), "").unwrap();
    let error = SafetensorsWriter::on(full(), temporary, &specs, &no_metadata()).unwrap_err();
    assert_eq!(message(error), expected);
    assert_eq!(entries(directory.path()), ["m.safetensors"]);

    // Full only after the header went through.
    let mut writer = SafetensorsWriter::create(&path, &specs, &no_metadata()).unwrap();
    writer.fill_disk();
    assert_eq!(message(writer.write("a", &[0; 4000]).unwrap_err()), expected);
    drop(writer);
    assert_eq!(entries(directory.path()), ["m.safetensors"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
}
