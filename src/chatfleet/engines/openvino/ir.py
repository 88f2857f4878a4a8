"""OpenVINO IR as XML: the edits that a graph made from a GGUF file gets."""

import struct
import xml.etree.ElementTree as ET
from pathlib import Path

LOGIT_SHIFT = 256.0
"""Added to every logit of a GGUF model, so that none is negative: see `sampling.honoured_parameters`. A shift
of all logits changes no probability, and at 256 float32 still tells logits apart that differ by 3e-5."""


def shift_logits(model_xml: Path) -> None:
    """Add LOGIT_SHIFT to the result named `logits` of the model at `model_xml` and in its .bin, in place.

    By editing the XML and appending four bytes: loading and saving the model would rewrite all of its
    weights. Raises ValueError when the graph has no such result.
    """
    tree = ET.parse(model_xml)
    layers, edges = tree.getroot().find("layers"), tree.getroot().find("edges")
    if layers is None or edges is None:
        raise ValueError(f"{model_xml} is no OpenVINO model")
    result = next((layer for layer in layers if _names(layer) == ("Result", "logits")), None)
    if result is None:
        raise ValueError(f"{model_xml} has no result named logits")
    edge = next(edge for edge in edges if edge.get("to-layer") == result.get("id"))
    port = result.find("input/port")
    assert port is not None
    dimensions = [ET.fromstring(ET.tostring(dimension)) for dimension in port.findall("dim")]

    weights = model_xml.with_suffix(".bin")
    offset = weights.stat().st_size
    with weights.open("ab") as file:
        file.write(struct.pack("<f", LOGIT_SHIFT))

    free_id = 1 + max(int(layer.get("id", 0)) for layer in layers)
    constant, add = str(free_id), str(free_id + 1)
    layers.append(_constant(constant, offset))
    layers.append(_add(add, dimensions))
    edges.append(_edge(edge.get("from-layer"), edge.get("from-port"), add, "0"))
    edges.append(_edge(constant, "0", add, "1"))
    edge.set("from-layer", add)
    edge.set("from-port", "2")
    tree.write(model_xml, encoding="utf-8", xml_declaration=True)


def _names(layer: ET.Element) -> tuple[str | None, str | None]:
    return layer.get("type"), layer.get("output_names") or layer.get("name")


def _constant(layer_id: str, offset: int) -> ET.Element:
    layer = ET.Element("layer", id=layer_id, name="chatfleet/logit_shift", type="Const", version="opset1")
    ET.SubElement(layer, "data", element_type="f32", shape="", offset=str(offset), size="4")
    ET.SubElement(ET.SubElement(layer, "output"), "port", id="0", precision="FP32")
    return layer


def _add(layer_id: str, dimensions: list[ET.Element]) -> ET.Element:
    layer = ET.Element("layer", id=layer_id, name="chatfleet/shifted_logits", type="Add", version="opset1")
    ET.SubElement(layer, "data", auto_broadcast="numpy")
    inputs = ET.SubElement(layer, "input")
    ET.SubElement(inputs, "port", id="0", precision="FP32").extend(dimensions)
    ET.SubElement(inputs, "port", id="1", precision="FP32")
    ET.SubElement(ET.SubElement(layer, "output"), "port", id="2", precision="FP32").extend(dimensions)
    return layer


def _edge(from_layer: str | None, from_port: str | None, to_layer: str, to_port: str) -> ET.Element:
    assert from_layer is not None and from_port is not None
    attributes = {"from-layer": from_layer, "from-port": from_port, "to-layer": to_layer, "to-port": to_port}
    return ET.Element("edge", attributes)
