"""Published laws of forgetting, fitted with parameter intervals and tried on points that were not fitted."""

from forgetting.analysis.laws.injection import InjectionLaw, fit_injection

__all__ = [
    "InjectionLaw",
    "fit_injection",
]
