"""Published laws of forgetting, fitted with parameter intervals and tried on points that were not fitted."""

from forgetting.analysis.laws.finetuning_loss import FineTuningLossLaw, fit_finetuning_loss
from forgetting.analysis.laws.injection import InjectionLaw, fit_injection
from forgetting.analysis.laws.polynomial import PolynomialLaw, fit_polynomial
from forgetting.analysis.laws.predictors import compare_predictors
from forgetting.analysis.laws.second_order import prediction_ratios, second_order_rise
from forgetting.analysis.laws.tuned_parameters import TunedParametersLaw, fit_tuned_parameters
from forgetting.analysis.laws.validation import held_out_error, leave_one_group_out

__all__ = [
    "FineTuningLossLaw",
    "InjectionLaw",
    "PolynomialLaw",
    "TunedParametersLaw",
    "compare_predictors",
    "fit_finetuning_loss",
    "fit_injection",
    "fit_polynomial",
    "fit_tuned_parameters",
    "held_out_error",
    "leave_one_group_out",
    "prediction_ratios",
    "second_order_rise",
]
