"""From the name in a request to a model of the fleet."""

import time
from collections.abc import Mapping

from chatfleet.core.errors import InvalidRequest, ModelNotFound, NoWorker, model_list
from chatfleet.core.fleet import ModelInfo
from chatfleet.dispatch.view import FleetView
from chatfleet.protocol.common import ModelCard


class ModelNames:
    """The names that clients may use: those of the fleet's models, and the aliases."""

    def __init__(self, view: FleetView, aliases: Mapping[str, str], default: str | None) -> None:
        self._view = view
        self._aliases = aliases
        self._default = default

    def resolve(self, requested: str | None) -> str:
        """The model that is meant, which has a worker now. Raises ModelNotFound, NoWorker, InvalidRequest."""
        name = requested or self._default or self._only_model()
        model = self._aliases.get(name, name)
        if self._view.serves(model):
            return model
        if self._view.is_away(model, time.monotonic()):
            raise NoWorker(f"No worker of the model `{name}` is there at the moment. Try again shortly.")
        self.require_models()
        raise ModelNotFound(name, self.served(), alias_of=model if model != name else None)

    def served(self) -> list[str]:
        """Every name that can be asked for now, in alphabetical order."""
        return sorted(self._cards())

    def cards(self) -> list[ModelCard]:
        return [card for _, card in sorted(self._cards().items())]

    def card(self, name: str) -> ModelCard:
        """Raises ModelNotFound, NoWorker."""
        self.resolve(name)
        return self._cards()[name]

    def require_models(self) -> None:
        """Raises NoWorker when nothing can be asked."""
        if not self._view.models():
            raise NoWorker("No model is served at the moment: no worker is there yet. Try again shortly.")

    def _cards(self) -> dict[str, ModelCard]:
        models = self._view.models()
        named = models | {alias: models[model] for alias, model in self._aliases.items() if model in models}
        return {name: _card(name, model) for name, model in named.items()}

    def _only_model(self) -> str:
        if (model := self._view.only_model()) is not None:
            return model
        self.require_models()
        raise InvalidRequest(f"You must name a model. Served: {model_list(self.served())}.", param="model")


def _card(name: str, model: ModelInfo) -> ModelCard:
    return ModelCard(
        id=name,
        object="model",
        created=model.created,
        owned_by=model.owned_by,
        max_model_len=model.context_length,
    )
