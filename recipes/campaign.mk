# The plan for a better default model, on one GPU and without a network, in parts that go on where they were cut.
#
#   make campaign -j14              all of it, fourteen runs at a time: teachers, ideas, student, final, means, btn, looks
#   make campaign PART=ideas        one part, or several with blanks between
#   make campaign PART=mobilenet    both phases of mobilenet_ferplus, and the mean of the seeds: not part of all of it, since
#                                   MOBILENET is weights that mien does not carry (recipes/mobilenet_ferplus.yaml says which)
#   make campaign OPTIONS="$(make -s campaign-try)" RUNS=out/campaign SEEDS=0 STUDENTS=0 BTN_SEEDS=1 CHOOSE="--limit 32"
#                                   a try on a CPU, two steps a run
#
# A run is a folder of $(RUNS) with a finished.json at its end. One that was cut goes on from its resume.ckpt, one that is
# finished is not made again. OPTIONS are options of all runs, as name=value, START the model that all begin with.
# Last weights count everywhere, so that no epoch is chosen. The even half of validation judges runs on the way; what
# `mien choose --look` says is over both halves.

RUNS ?= runs/campaign
START ?= mobilefacenet_ferplus
SEEDS ?= 0 1
STUDENTS ?= 0 1 2
BTN_SEEDS ?= 5
MOBILENET ?= weights/mobilenet.safetensors
OPTIONS ?= trainer.accelerator=gpu trainer.precision=bf16-mixed faces.in_memory=true
CHOOSE ?=
PARTS := teachers ideas student final means btn looks
PART ?= $(PARTS)
TRIED := trainer.accelerator=cpu trainer.precision=32-true trainer.max_steps=2 trainer.val_check_interval=2 \
	trainer.check_val_every_n_epoch=null trainer.limit_val_batches=1 faces.subset=300 faces.aligned=0 cache=false ema=0

.PHONY: campaign campaign-try $(addprefix campaign-,$(PARTS) mobilenet)

campaign: $(addprefix campaign-,$(PART))

campaign-try:
	@echo $(TRIED)

# $(call run,recipe,start,options), $(call train,recipe,options): a run whose folder has the name of the target's
run = .venv/bin/mien train recipes/$(1).yaml --name $(notdir $(@D)) --out $(@D) \
	--init "{$(2)}" --data.path $(DATA) $(3) $(addprefix --,$(OPTIONS))
train = $(call run,campaign_$(1),'': $(START),$(2))
# $(call runs,name,seeds): its finished runs, one a seed
runs = $(foreach seed,$(2),$(RUNS)/$(1)_$(seed)/finished.json)

# Ideas: four epochs each from the same start, beside the plain recipe. A name, and the options that are the idea.
plain :=
flip := --task.flip_consistency 2 --faces.batch_size 64
branch := --model.init_args.batch_branch mien.nn.BatchTransformer
adjust := --task.logit_adjustment 0.25
mix := --task.mixup 0.2
cut := --task.cutmix 0.5
hard := --augment.jpeg_p 0.4 --augment.jpeg_quality '[10,70]' --augment.resample_p 0.3
rand := --augment.rand_count 2
sam := --task.sam_rho 0.05
IDEAS := plain flip branch adjust mix cut hard rand sam

campaign-ideas: $(foreach idea,$(IDEAS),$(call runs,$(idea),$(SEEDS)))

define idea
$(RUNS)/$(1)_%/finished.json: | .venv/testing
	$$(call train,idea,--seed $$* $$($(1)))
endef
$(foreach each,$(IDEAS),$(eval $(call idea,$(each))))

# Teachers: four networks at full length, three seeds of a recipe and one twice as wide, which learns without mirror images.
TEACHERS := long_0 long_1 long_2 wide_0
campaign-teachers: $(foreach name,$(TEACHERS),$(RUNS)/$(name)/finished.json)

$(RUNS)/long_%/finished.json: | .venv/testing
	$(call train,long,--seed 1$*)

$(RUNS)/wide_%/finished.json: | .venv/testing
	$(call train,long,--seed 2$* --model.init_args.width 2 --task.flip_consistency 0)

# A student learns what START and the teachers answer in the mean; last, the same on all faces, whose file says that it
# is not measured.
comma := ,
blank := $(subst ,, )
TAUGHT = --task.teach 0.5 --teachers_once --faces.in_memory true --teachers \
	"[$(START),$(subst $(blank),$(comma),$(foreach name,$(TEACHERS),$(RUNS)/$(name)/last.safetensors))]"

campaign-student: $(call runs,student,$(STUDENTS))
campaign-final: $(call runs,final,$(STUDENTS))

$(RUNS)/student_%/finished.json: | campaign-teachers
	$(call train,long,--seed 3$* $(TAUGHT))

$(RUNS)/final_%/finished.json: | campaign-teachers
	$(call train,long,--seed 3$* $(TAUGHT) --faces.train_split train+validation)

# The means of the weights of several seeds.
MEANS := long student final
campaign-means: $(foreach name,$(MEANS),$(RUNS)/$(name)_mean.safetensors)

$(RUNS)/long_mean.safetensors: | campaign-teachers
	.venv/bin/mien average $@ $(RUNS)/long_*/last.safetensors

$(RUNS)/%_mean.safetensors: | campaign-student campaign-final
	.venv/bin/mien average $@ $(patsubst %/finished.json,%/last.safetensors,$(call runs,$*,$(STUDENTS)))

# MobileNet from weights of its own, in two phases, a run each a seed; the weights of the second are averaged.
campaign-mobilenet: $(RUNS)/mobilenet_mean.safetensors

$(RUNS)/mobilenet_mean.safetensors: | $(call runs,mobilenet_2,$(SEEDS))
	.venv/bin/mien average $@ $(patsubst %/finished.json,%/last.safetensors,$(call runs,mobilenet_2,$(SEEDS)))

$(RUNS)/mobilenet_2_%/finished.json: | $(RUNS)/mobilenet_1_%/finished.json
	$(call run,mobilenet_ferplus_2,'': $(RUNS)/mobilenet_1_$*/last.safetensors,--seed 1$*)

.PRECIOUS: $(RUNS)/mobilenet_1_%/finished.json
$(RUNS)/mobilenet_1_%/finished.json: | .venv/testing
	$(call run,mobilenet_ferplus,image: $(MOBILENET),--seed $*)

# BTN on kept features: POSTER++ (mla=none, bt=false), BTN, and BTN without one of its parts.
campaign-btn: .venv/testing
	.venv/bin/mien ablate recipes/btn_mobile_cached_ferplus.yaml --out $(RUNS)/btn --seeds $(BTN_SEEDS) \
		--vary model.init_args.mla=levels,none --vary model.init_args.bt=true,false --set data.path=$(DATA) \
		--set cache_folder=$(RUNS)/cache $(addprefix --set ,$(filter-out faces.aligned=%,$(OPTIONS)))

# What the even half says of each kind of run; the other half judges by `mien choose … --look`, once an idea is final.
campaign-looks: | campaign-ideas campaign-teachers campaign-student
	for name in $(IDEAS) long wide student; do .venv/bin/mien choose $(RUNS)/$${name}_*/last.safetensors \
		--data $(DATA) --half even --out $(RUNS)/answers $(CHOOSE) || exit; done
