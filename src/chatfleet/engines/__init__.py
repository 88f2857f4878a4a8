"""Engines turn token ids into token ids. Text, templates and HTTP are not their business."""
