//! Which columns are meant where a table lacks what a task asks for: chosen by type first, then by name, so that the recipe
//! that a hint proposes opens.

use arrow::datatypes::{DataType, Schema};

use super::reader::Asker;
use super::rejected::cut;
use super::schema::{ColumnFault, ColumnKind, ColumnRequest, bind_one};
use super::types::{Place, find, is_text, list_item};
use crate::nearest::nearest;

/// Most columns that a hint names.
const MAX_NAMED: usize = 8;

/// Most columns that are looked through for the one that is meant.
const MAX_LOOKED_AT: usize = 1000;

/// What people call the columns of a role.
const SPELLINGS: &[(&str, &[&str])] = &[
    ("image", &["images", "img", "picture", "photo", "pixel_values", "file_name", "image_path", "path"]),
    ("images", &["image", "pictures", "photos", "imgs"]),
    ("question", &["query", "instruction", "problem", "input", "prompt"]),
    ("prompt", &["instruction", "question", "caption", "query", "input", "text"]),
    ("answer", &["answers", "response", "output", "reply", "solution", "completion", "report", "caption", "text"]),
    ("messages", &["conversations", "conversation", "chat", "dialog", "dialogue", "turns"]),
    ("label", &["labels", "class", "category", "kind", "target"]),
    ("labels", &["label", "categories", "category", "classes", "box_labels"]),
    ("boxes", &["bbox", "bboxes", "box", "bounding_boxes", "annotations"]),
    ("mask", &["annotation", "segmentation", "label", "masks"]),
    ("caption", &["captions", "text", "description", "title", "sentence"]),
    ("source", &["input_image", "original", "before", "original_image"]),
];

/// What is wrong with the alternative that comes nearest, and hints that lead to one that opens.
pub(super) fn refuse(
    schema: &Schema,
    alternatives: &[Vec<ColumnRequest>],
    asker: Asker,
) -> (Vec<ColumnFault>, Vec<String>) {
    let mut judged: Vec<_> = alternatives
        .iter()
        .map(|requests| {
            let faults = requests.iter().filter_map(|request| bind_one(schema, request).err()).collect::<Vec<_>>();
            (requests, faults)
        })
        .collect();
    // One that nothing of is there is not what is meant.
    judged.sort_by_key(|(requests, faults)| match faults.len() == requests.len() {
        true => (true, 0),
        false => (false, faults.len()),
    });
    let schema = &looked_through(schema, alternatives);
    let is_repeated = |fault: &ColumnFault| matches!(fault, ColumnFault::Repeated { .. });
    for (requests, faults) in judged.iter().filter(|(_, faults)| !faults.iter().any(is_repeated)) {
        if let Some(columns) = assign(schema, requests).into_iter().collect::<Option<Vec<String>>>() {
            return (faults.clone(), vec![proposal(schema, requests, &columns, asker)]);
        }
    }
    judged.into_iter().next().map_or_else(Default::default, |(requests, faults)| {
        let mut hints: Vec<String> =
            faults.iter().filter_map(|fault| open_hint(schema, requests, fault, asker)).collect();
        let is_picture = |request: &&ColumnRequest| matches!(request.kind, ColumnKind::Image | ColumnKind::ImageList);
        let lacks_pictures_alone = requests.iter().any(|request| request.kind == ColumnKind::Messages)
            && requests.iter().filter(|request| bind_one(schema, request).is_err()).all(|request| is_picture(&request));
        if lacks_pictures_alone {
            hints.push(match asker {
                Asker::Recipe => "conversations without pictures are for `task = \"text\"`".into(),
                Asker::Command => "conversations without pictures are for `--task text`".into(),
            });
        }
        (faults, hints)
    })
}

/// A schema of the first columns, and of those that are asked for.
fn looked_through(schema: &Schema, alternatives: &[Vec<ColumnRequest>]) -> Schema {
    let is_named = |name: &str| {
        let mut requests = alternatives.iter().flatten();
        requests.any(|request| {
            request.column.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    let fields = schema.fields().iter().enumerate();
    let fields = fields.filter(|(number, field)| *number < MAX_LOOKED_AT || is_named(field.name()));
    Schema::new_with_metadata(fields.map(|(_, field)| field.clone()).collect::<Vec<_>>(), schema.metadata().clone())
}

/// A column for every request as far as it is clear which one is meant: those that are there as they are, then what names
/// say, then what alone is left.
fn assign(schema: &Schema, requests: &[ColumnRequest]) -> Vec<Option<String>> {
    let is_good = |request: &ColumnRequest| bind_one(schema, request).is_ok();
    let mut columns: Vec<Option<String>> =
        requests.iter().map(|request| is_good(request).then(|| request.column.clone())).collect();
    for choose in [by_name, only] {
        for (number, request) in requests.iter().enumerate() {
            if columns[number].is_none() {
                let used: Vec<String> = columns.iter().flatten().cloned().collect();
                columns[number] = choose(request, &fitting(schema, request, &used));
            }
        }
    }
    columns
}

/// Columns of a type that fits a request, fields of structs among them.
fn fitting(schema: &Schema, request: &ColumnRequest, used: &[String]) -> Vec<String> {
    let mut names = Vec::new();
    for field in schema.fields() {
        names.push(field.name().clone());
        let inner = list_item(field.data_type()).unwrap_or(field.data_type());
        if let DataType::Struct(fields) = inner {
            let inner = fields.iter().take(MAX_LOOKED_AT);
            names.extend(inner.map(|inner| format!("{}.{}", field.name(), inner.name())));
        }
    }
    names.truncate(MAX_LOOKED_AT);
    // The bytes of a picture are a picture, but the whole is meant.
    let is_part = |name: &str| {
        name.rsplit_once('.')
            .is_some_and(|(whole, part)| ["bytes", "path"].contains(&part) && names.iter().any(|name| name == whole))
    };
    let opens = |name: &String| {
        let found = bind_one(schema, &ColumnRequest { column: name.clone(), required: true, ..request.clone() });
        let is_usable = |place: Place| {
            // Any string may be JSON or the path of a picture, but only its name can say so.
            let is_string = is_text(list_item(&place.data_type).unwrap_or(&place.data_type));
            let is_guess = match request.kind {
                ColumnKind::Messages => is_string && !is_known(request, name),
                ColumnKind::Image | ColumnKind::ImageList => {
                    is_string && !is_known(request, name) && !is_of_files(name)
                }
                _ => false,
            };
            place.data_type != DataType::Null && !is_guess
        };
        found.is_ok_and(|place| place.is_some_and(is_usable))
    };
    names.iter().filter(|name| !used.contains(name) && !is_part(name) && opens(name)).cloned().collect()
}

/// Whether a column is called as people call the role.
fn is_known(request: &ColumnRequest, column: &str) -> bool {
    let column = column.rsplit('.').next().unwrap_or(column).to_lowercase();
    column == request.role || spellings(request.role).contains(&column.as_str())
}

/// Whether a column's name says that it holds pictures or files.
fn is_of_files(column: &str) -> bool {
    let column = column.to_lowercase();
    ["image", "img", "picture", "photo", "path", "file"].iter().any(|word| column.contains(word))
}

fn spellings(role: &str) -> &'static [&'static str] {
    SPELLINGS.iter().find(|(known, _)| *known == role).map_or(&[], |(_, names)| names)
}

/// The only column there is.
fn only(_: &ColumnRequest, columns: &[String]) -> Option<String> {
    columns.first().filter(|_| columns.len() == 1).cloned()
}

/// The one of several columns that is meant, by its name.
fn by_name(request: &ColumnRequest, columns: &[String]) -> Option<String> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_lowercase();
    let wanted = [request.column.as_str(), request.role];
    let named = |test: &dyn Fn(&str) -> bool| {
        let mut found = columns.iter().filter(|name| test(&last(name)));
        found.next().filter(|_| found.next().is_none()).cloned()
    };
    let near =
        || wanted.iter().find_map(|wanted| nearest(wanted, columns.iter().map(String::as_str)).map(str::to_owned));
    let spelt = || spellings(request.role).iter().find_map(|spelling| named(&|name| name == *spelling));
    let containing = || wanted.iter().find_map(|wanted| named(&|name| name.contains(&wanted.to_lowercase())));
    near().or_else(spelt).or_else(containing)
}

/// The whole `columns` of a recipe that opens.
fn proposal(schema: &Schema, requests: &[ColumnRequest], columns: &[String], asker: Asker) -> String {
    let pairs = || requests.iter().zip(columns);
    let changed: Vec<String> = pairs()
        .filter(|(request, _)| bind_one(schema, request).is_err())
        .map(|(_, column)| format!("`{column}`"))
        .collect();
    // An optional column that is not there must not be named.
    let is_there = |request: &ColumnRequest, column: &str| request.required || find(schema, column).is_some();
    let table: Vec<(&str, &str)> = pairs()
        .filter(|(request, column)| request.role != column.as_str() || request.column != **column)
        .filter(|(request, column)| is_there(request, column))
        .map(|(request, column)| (request.role, column.as_str()))
        .collect();
    format!("did you mean {}? say {}", changed.join(" and "), asker.columns(&table))
}

/// What can be said where it is not clear which column is meant.
fn open_hint(schema: &Schema, requests: &[ColumnRequest], fault: &ColumnFault, asker: Asker) -> Option<String> {
    let role = match fault {
        ColumnFault::Missing { role, .. } | ColumnFault::Type { role, .. } => *role,
        ColumnFault::Repeated { column, .. } => {
            return Some(format!("rename the columns `{column}`, so that it is clear which one is meant"));
        }
    };
    let number = requests.iter().position(|request| request.role == role)?;
    let (request, mut used) = (&requests[number], assign(schema, requests));
    if let Some(column) = used.swap_remove(number) {
        return Some(format!("did you mean `{column}`? say {}", asker.columns(&[(role, &column)])));
    }
    let mut columns = fitting(schema, request, &used.into_iter().flatten().collect::<Vec<_>>());
    if columns.is_empty() {
        return Some(format!("no column has a type that `{role}` is read from: {}", request.kind.expected()));
    }
    let more = columns.len().saturating_sub(MAX_NAMED);
    columns.truncate(MAX_NAMED);
    let mut named = columns.iter().map(|column| format!("`{}`", cut(column))).collect::<Vec<_>>().join(", ");
    if more > 0 {
        named.push_str(&format!(" and {more} more"));
    }
    let given = asker.columns(&[(role, "...")]);
    Some(format!("say which column is meant with {given}; {named} could be read"))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Fields};

    use super::*;
    use crate::data::schema::bind;

    fn list(item: DataType) -> DataType {
        DataType::List(Field::new("item", item, true).into())
    }

    fn structure(fields: &[(&str, DataType)]) -> DataType {
        DataType::Struct(fields.iter().map(|(name, of)| Field::new(*name, of.clone(), true)).collect::<Fields>())
    }

    /// The alternatives with the names of `columns = { ... }` that a hint proposes.
    fn followed(alternatives: &[Vec<ColumnRequest>], hint: &str) -> Option<Vec<Vec<ColumnRequest>>> {
        let (_, table) = hint.split_once("columns = { ")?;
        let (table, _) = table.split_once(" }")?;
        let pairs: Vec<(&str, &str)> = table.split(", ").filter_map(|pair| pair.split_once(" = ")).collect();
        let name = |request: &ColumnRequest| {
            let given = pairs.iter().find(|(role, _)| *role == request.role);
            let column = given.map_or(request.role.to_owned(), |(_, column)| column.trim_matches('"').to_owned());
            ColumnRequest { column, ..request.clone() }
        };
        Some(alternatives.iter().map(|requests| requests.iter().map(name).collect()).collect())
    }

    fn understand() -> Vec<Vec<ColumnRequest>> {
        let mut all = Vec::new();
        for texts in [&["answer"][..], &["messages"]] {
            for (image, kind) in [("image", ColumnKind::Image), ("images", ColumnKind::ImageList)] {
                let mut requests = vec![ColumnRequest::required(image, image, kind)];
                let kind = if texts == ["answer"] { ColumnKind::Text } else { ColumnKind::Messages };
                requests.push(ColumnRequest::required(
                    if texts == ["answer"] { "answer" } else { "messages" },
                    texts[0],
                    kind,
                ));
                all.push(requests);
            }
        }
        all
    }

    #[test]
    fn a_hint_leads_to_columns_that_open() {
        let image = || structure(&[("bytes", DataType::Binary), ("path", DataType::Utf8)]);
        let turns = || list(structure(&[("role", DataType::Utf8), ("content", DataType::Utf8)]));
        let locate = vec![vec![
            ColumnRequest::required("image", "image", ColumnKind::Image),
            ColumnRequest::required("boxes", "boxes", ColumnKind::Boxes),
            ColumnRequest::required("labels", "labels", ColumnKind::TextList),
        ]];
        let boxes = || list(list(DataType::Float32));
        let objects = structure(&[("bbox", boxes()), ("category", list(DataType::Int64))]);
        for (alternatives, columns, expected) in [
            (
                &understand(),
                vec![("photos", list(image())), ("chat", turns())],
                "columns = { images = \"photos\", messages = \"chat\" }",
            ),
            (
                &understand(),
                vec![("image", list(image())), ("answer", DataType::Utf8)],
                "columns = { images = \"image\" }",
            ),
            (
                &understand(),
                vec![("images", list(image())), ("conversations", turns())],
                "{ messages = \"conversations\" }",
            ),
            (
                &understand(),
                vec![("id", DataType::Utf8), ("image", image()), ("Response", DataType::Utf8)],
                "columns = { answer = \"Response\" }",
            ),
            (
                &locate,
                vec![
                    ("image", image()),
                    ("boxes", boxes()),
                    ("label", DataType::Utf8),
                    ("box_labels", list(DataType::Utf8)),
                ],
                "columns = { labels = \"box_labels\" }",
            ),
            (
                &locate,
                vec![("image", image()), ("objects", objects)],
                "columns = { boxes = \"objects.bbox\", labels = \"objects.category\" }",
            ),
        ] {
            let schema =
                Schema::new(columns.iter().map(|(name, of)| Field::new(*name, of.clone(), true)).collect::<Vec<_>>());
            assert!(alternatives.iter().all(|requests| bind(&schema, requests).is_err()), "{expected}");
            let (faults, hints) = refuse(&schema, alternatives, Asker::Recipe);
            assert!(!faults.is_empty());
            assert!(hints.len() == 1 && hints[0].contains(expected), "{hints:?}");
            let followed = followed(alternatives, &hints[0]).unwrap_or_default();
            assert!(followed.iter().any(|requests| bind(&schema, requests).is_ok()), "{hints:?}");
        }
    }

    #[test]
    fn a_wrong_name_is_put_right_even_by_the_role_s_own() {
        let schema =
            Schema::new(vec![Field::new("image", DataType::Binary, true), Field::new("answer", DataType::Utf8, true)]);
        let mut asked = understand();
        asked[0][1].column = "anwser".into();
        let (_, hints) = refuse(&schema, &asked[..1], Asker::Recipe);
        assert_eq!(hints, ["did you mean `answer`? say `columns = { answer = \"answer\" }` in the recipe"]);
    }

    #[test]
    fn where_it_is_not_clear_what_could_be_read_is_named() {
        let schema = Schema::new(vec![
            Field::new("image", DataType::Binary, true),
            Field::new("a", DataType::Utf8, true),
            Field::new("b", DataType::Utf8, true),
        ]);
        let (_, hints) = refuse(&schema, &understand(), Asker::Recipe);
        assert_eq!(
            hints,
            ["say which column is meant with `columns = { answer = \"...\" }` in the recipe; `a`, `b` could be read"]
        );
        // A string is not taken for JSON because it is there.
        let none =
            Schema::new(vec![Field::new("image", DataType::Binary, true), Field::new("text_id", DataType::Utf8, true)]);
        let asked: Vec<_> = understand().into_iter().filter(|requests| requests[1].role == "messages").collect();
        let (_, hints) = refuse(&none, &asked, Asker::Recipe);
        assert!(hints.len() == 1 && hints[0].contains("no column has a type"), "{hints:?}");
        let numbers =
            Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("answer", DataType::Utf8, true)]);
        let (_, hints) = refuse(&numbers, &understand()[..1], Asker::Recipe);
        assert!(hints.len() == 1 && hints[0].contains("no column has a type"), "{hints:?}");
        // A column of texts is no column of pictures because it is there.
        let turn = structure(&[("role", DataType::Utf8), ("content", DataType::Utf8)]);
        let chat = Schema::new(vec![Field::new("messages", list(turn), true), Field::new("id", DataType::Utf8, true)]);
        let asked: Vec<_> = understand().into_iter().filter(|requests| requests[1].role == "messages").collect();
        let (_, hints) = refuse(&chat, &asked, Asker::Recipe);
        assert!(hints.iter().all(|hint| !hint.contains("`id`") && !hint.contains("\"id\"")), "{hints:?}");
        assert!(hints.iter().any(|hint| hint.contains("task = \"text\"")), "{hints:?}");
        // One is clear, the other is not.
        let numbers =
            Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("answers", DataType::Utf8, true)]);
        let (_, hints) = refuse(&numbers, &understand()[..1], Asker::Recipe);
        assert!(hints[0].contains("no column has a type") && hints[1].contains("answer = \"answers\""), "{hints:?}");
    }
}
