//! What `janus probe` is given.

use super::*;

fn whole_numbers(rows: usize, values: &[i64]) -> Tensor {
    Tensor::from_vec(values.to_vec(), (rows, values.len() / rows), &Device::Cpu).unwrap()
}

/// Gives these tensors to `janus probe`, which refuses them.
#[track_caller]
fn probe_refuses(place: &Workplace, input: &[(&str, Tensor)], more: &[&str], said: &[&str]) {
    let tensors: Vec<(&str, Tensor)> = input.to_vec();
    place.write("in.safetensors", safetensors::serialize(tensors, None).unwrap());
    let mut arguments =
        vec!["probe", "--base", "base", "--input", "in.safetensors", "--output", "deep/out.safetensors"];
    arguments.extend(more);
    place.refuses(&arguments, said);
}

#[test]
fn probe_with_ids_out_of_range() {
    let place = place();
    let ids = whole_numbers(2, &[256, 65, 66, 256, 67, 68]);
    for id in [400, -1, i64::MAX, i64::MIN, 1 << 32, (1 << 32) + 65] {
        let bad = whole_numbers(2, &[256, 65, 66, 256, 67, id]);
        let value = id.to_string();
        let said = [value.as_str(), "row 1, position 2"];
        probe_refuses(&place, &[("input_ids", bad.clone())], &[], &said);
        if id != 400 {
            let said = ["`image_tokens`", value.as_str()];
            if u32::try_from(id).is_err() {
                probe_refuses(&place, &[("input_ids", ids.clone()), ("image_tokens", bad.clone())], &[], &said);
            }
        }
        let said = ["`labels`", value.as_str(), "row 1, position 2"];
        probe_refuses(&place, &[("input_ids", ids.clone()), ("labels", bad)], &[], &said);
    }
    let codes = whole_numbers(2, &[1, 2, 3, 64]);
    probe_refuses(&place, &[("input_ids", ids.clone()), ("image_tokens", codes)], &[], &["64", "row 1"]);
    let label = whole_numbers(2, &[-100, -99, 1, -100, 1, 1]);
    probe_refuses(&place, &[("input_ids", ids), ("labels", label)], &[], &["`labels`", "-99", "row 0, position 1"]);
}

#[test]
fn probe_with_tensors_of_another_form() {
    let place = place();
    let ids = whole_numbers(1, &[256, 65, 66, 67]);
    let with = |name: &'static str, tensor: Tensor| vec![("input_ids", ids.clone()), (name, tensor)];
    probe_refuses(&place, &[], &[], &["has no tensor `input_ids`"]);
    let narrow = ids.to_dtype(DType::U32).unwrap();
    probe_refuses(&place, &[("input_ids", narrow)], &[], &["`input_ids`", "U32", "I64"]);
    probe_refuses(&place, &[("input_ids", ids.flatten_all().unwrap())], &[], &["`input_ids`", "[4]"]);
    let empty = Tensor::zeros((0, 4), DType::I64, &Device::Cpu).unwrap();
    probe_refuses(&place, &[("input_ids", empty)], &[], &["`input_ids`", "[0, 4]"]);
    let mask = whole_numbers(1, &[1, 1, 1]);
    probe_refuses(&place, &with("attention_mask", mask), &[], &["`attention_mask`", "[1, 3]", "[1, 4]"]);
    let mask = whole_numbers(1, &[1, 1, 2, 1]);
    probe_refuses(&place, &with("attention_mask", mask), &[], &["`attention_mask`", "2", "position 2"]);
    probe_refuses(&place, &with("labels", zeros(&[1, 4])), &[], &["`labels`", "F32"]);
    probe_refuses(&place, &with("pixels", zeros(&[1])), &[], &["`pixels`, which is none of the inputs"]);
    let pixels = zeros(&[1, 3, 32, 32]);
    let wide = pixels.to_dtype(DType::F64).unwrap();
    probe_refuses(&place, &with("pixel_values", wide), &[], &["`pixel_values`", "F64", "F32"]);
    for (value, told) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let pixels = pixels.affine(0.0, f64::from(value)).unwrap();
        probe_refuses(&place, &with("pixel_values", pixels), &[], &["`pixel_values`", told, "finite"]);
    }
    probe_refuses(&place, &with("pixel_values", zeros(&[3, 32, 32])), &[], &["`pixel_values`", "[3, 32, 32]"]);
    probe_refuses(&place, &with("pixel_values", zeros(&[1, 3, 16, 16])), &[], &["[1, 3, 16, 16]"]);
    probe_refuses(&place, &with("pixel_values", zeros(&[1, 1, 32, 32])), &[], &["[1, 1, 32, 32]"]);
    probe_refuses(&place, &with("pixel_values", pixels.clone()), &[], &["0 image placeholders", "16"]);
    let placeholders = whole_numbers(1, &[261; 16]);
    probe_refuses(&place, &[("input_ids", placeholders)], &[], &["16 image placeholders"]);
    let codes = whole_numbers(2, &[1, 2, 3, 4]);
    probe_refuses(&place, &with("image_tokens", codes), &[], &["`image_tokens`", "[2, 2]"]);
    let input = [
        ("input_ids", ids.clone()),
        ("image_tokens", whole_numbers(1, &[1, 2])),
        ("attention_mask", whole_numbers(1, &[0, 0, 0, 0])),
    ];
    probe_refuses(&place, &input, &[], &["row 0 of `attention_mask` is all zeros"]);
}

#[test]
fn probe_files_and_gradients() {
    let place = place_with_adapter();
    let arguments = ["probe", "--base", "base", "--input", "in.safetensors", "--output", "out.safetensors"];
    place.refuses(&arguments, &["in.safetensors"]);
    for bytes in [&b""[..], b"no tensors", &[0xff; 64], &(1u64 << 40).to_le_bytes()] {
        place.write("in.safetensors", bytes);
        place.refuses(&arguments, &["in.safetensors"]);
    }
    let ids = [("input_ids", whole_numbers(1, &[256, 65, 66]))];
    probe_refuses(&place, &ids, &["--gradients"], &["`--gradients` needs one adapter, 0 are given"]);
    let two = ["--gradients", "--adapter", "run", "--adapter", "run"];
    probe_refuses(&place, &ids, &two, &["needs one adapter, 2 are given"]);
    probe_refuses(&place, &ids, &["--gradients", "--adapter", "run"], &["gradients need a loss"]);
}

/// Five tensors need no megabytes of header, and of a shape without end nothing is parsed.
#[test]
fn probe_with_a_header_that_is_a_book() {
    let place = place();
    let header =
        format!(r#"{{"input_ids":{{"dtype":"I64","shape":[{}1],"data_offsets":[0,8]}}}}"#, "1,".repeat(600_000));
    place.write("in.safetensors", [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat());
    let arguments = ["probe", "--base", "base", "--input", "in.safetensors", "--output", "out.safetensors"];
    place.refuses(&arguments, &["its header claims 1200", "expected at most 1048576"]);
}
