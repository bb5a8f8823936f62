"""As much of `kubectl kustomize` as cluster/kuberay uses, so that its overlays are tested where there is no kubectl."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KNOWN = {"apiVersion", "kind", "resources", "namespace", "configMapGenerator", "patches", "replacements", "images"}
CLUSTER_SCOPED = {"Namespace"}


def build(directory: Path) -> list[Object]:
    """The objects that a directory's kustomization makes, in no particular order.

    In kustomize's own order: resources, generators, patches, namespace, images, replacements.
    """
    kustomization = load(directory / "kustomization.yaml")
    assert set(kustomization) <= KNOWN, f"{directory}: this helper does not know {set(kustomization) - KNOWN}"
    objects: list[Object] = []
    for name in kustomization["resources"]:
        path = (directory / name).resolve()
        # YAML's anchors must not make two places of an object one: a patch changes one place.
        objects += build(path) if path.is_dir() else [copy_tree(each) for each in load_all(path)]
    for generator in kustomization.get("configMapGenerator", ()):
        _generate(generator, directory, objects)
    for patch in kustomization.get("patches", ()):
        _patch(objects, load(directory / patch["path"]), patch.get("target"))
    for each in objects:
        if "namespace" in kustomization and each["kind"] not in CLUSTER_SCOPED:
            each["metadata"]["namespace"] = kustomization["namespace"]
    for image in kustomization.get("images", ()):
        _rename_image(objects, image["name"], f"{image['newName']}:{image['newTag']}")
    for replacement in kustomization.get("replacements", ()):
        _replace(objects, replacement)
    return objects


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def load_all(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def copy_tree(value: Any) -> Any:
    """A copy that shares nothing; `copy.deepcopy` keeps what is shared shared."""
    if isinstance(value, dict):
        return {key: copy_tree(each) for key, each in value.items()}
    if isinstance(value, list):
        return [copy_tree(each) for each in value]
    return copy.copy(value)


def _generate(generator: Object, directory: Path, objects: list[Object]) -> None:
    assert generator["options"]["disableNameSuffixHash"]
    data = {Path(name).name: (directory / name).read_text(encoding="utf-8") for name in generator["files"]}
    known = [each for each in objects if each["kind"] == "ConfigMap" and each["metadata"]["name"] == generator["name"]]
    if generator.get("behavior") == "merge":
        known[0]["data"].update(data)
        return
    assert not known
    metadata = {"name": generator["name"], "labels": dict(generator["options"].get("labels", {}))}
    objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _patch(objects: list[Object], patch: Any, target: Object | None) -> None:
    if target is None:
        target = {"kind": patch["kind"], "name": patch["metadata"]["name"]}
    chosen = _selected(objects, target)
    assert chosen, f"a patch for {target} patches nothing"
    for each in chosen:
        if isinstance(patch, list):
            for operation in patch:
                _json_patch(each, operation)
        else:
            _merge(each, {key: value for key, value in patch.items() if key != "metadata"})


def _selected(objects: list[Object], target: Object) -> list[Object]:
    return [
        each
        for each in objects
        if each["kind"] == target["kind"] and target.get("name", each["metadata"]["name"]) == each["metadata"]["name"]
    ]


def _json_patch(each: Object, operation: Object) -> None:
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    place: Any = each
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place[part]
    value = copy_tree(operation["value"])
    if operation["op"] == "add" and isinstance(place, list):
        assert last == "-"
        place.append(value)
    else:
        assert operation["op"] in ("add", "replace")
        assert operation["op"] == "add" or last in place, f"{operation['path']} is not there to be replaced"
        place[last] = value


def _merge(into: Object, patch: Object) -> None:
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy_tree(value)


def _rename_image(value: Any, name: str, new: str) -> None:
    if isinstance(value, list):
        for each in value:
            _rename_image(each, name, new)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key == "image" and each == name:
                value[key] = new
            else:
                _rename_image(each, name, new)


def _replace(objects: list[Object], replacement: Object) -> None:
    (source,) = _selected(objects, replacement["source"])
    value = source[replacement["source"]["fieldPath"]]
    for target in replacement["targets"]:
        for each in _selected(objects, target["select"]):
            for path in target["fieldPaths"]:
                parent, field = path.split(".")
                each[parent][field] = copy_tree(value)
